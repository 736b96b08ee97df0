"""How uncertain a model is about a whole scan, to choose the scan to annotate next."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from dbisl.bridge import normalised_entropy
from dbisl.transforms.postprocessing import FuseTasksd
from dbisl.utils.recipe import check_recipe


class ScanScores:
    """Uncertainty scores of a scan by a bundle's model. A higher score means a less certain model.

    There are two scores: ``entropy`` is the predictive entropy of the fused tasks, and ``disagreement`` is the
    Jensen-Shannon divergence of the two tasks (0 for a single task). Both are divided by ``log K``, summed over all
    voxels of the scan at the training spacing, and divided by the number of foreground voxels of the segmentation. That
    number counts as 1 if there are none, so that a scan without any structure ranks first.

    Args:
        bundle_root: folder of the bundle, which has ``configs``.
        weights: path of the network's state dict; None for the bundle's ``models/model.pt``.
        device: device of the network.
        overrides: other values for keys of ``inference.json``.

    Raises:
        InputError: if the weights were trained for something else than the config says.
    """

    def __init__(
        self,
        bundle_root: str | os.PathLike[str],
        weights: str | os.PathLike[str] | None = None,
        device: str = "cpu",
        overrides: Mapping[str, Any] | None = None,
    ) -> None:
        configs = Path(bundle_root) / "configs"
        config = ConfigParser()
        config.read_config([str(configs / "inference.json"), str(configs / "maps.json")])
        path = Path(bundle_root) / "models" / "model.pt" if weights is None else weights
        places = {"bundle_root": str(bundle_root), "ckpt_path": os.fspath(path), "device": device}
        config.update({**(overrides or {}), **places})
        check_recipe(path, config.get_parsed_content("recipe"))
        self.device = device
        self.network = config.get_parsed_content("network").eval()
        self.network.load_state_dict(torch.load(path, map_location=device, weights_only=True))
        self.preprocessing = config.get_parsed_content("preprocessing")
        self.inferer = config.get_parsed_content("inferer")
        self.fuse = FuseTasksd("pred", num_classes=config.get_parsed_content("out_channels"), maps=True)

    @torch.no_grad()
    def __call__(self, image: str | os.PathLike[str]) -> dict[str, float]:
        """Return the scores ``disagreement`` and ``entropy`` of a scan.

        Args:
            image: path of a NIfTI file or of the folder of a DICOM series.
        """
        data: Mapping[str, Any] = self.preprocessing({"image": os.fspath(image)})
        output = self.inferer(data["image"].as_tensor()[None].to(self.device), self.network)
        maps = self.fuse({"pred": output[0].float()})
        foreground = max(int((maps["pred"].argmax(dim=0) > 0).sum()), 1)
        sums = {
            "disagreement": maps.get("pred_uncertainty", torch.zeros(1)).sum(dtype=torch.float64),
            "entropy": normalised_entropy(maps["pred"][None]).sum(dtype=torch.float64),
        }
        return {name: float(total) / foreground for name, total in sums.items()}
