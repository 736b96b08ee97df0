"""How unsure a model is of a whole scan, to choose what to annotate next."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from dbisl.bridge import normalised_entropy
from dbisl.transforms.postprocessing import FuseTasksd


class ScanScores:
    """Scores of a scan by a bundle's model, the higher the less sure.

    ``disagreement`` is the Jensen-Shannon divergence of the two tasks, ``entropy`` the predictive entropy of their
    mean, both over ``log K`` and summed over the scan at the training spacing, over the number of voxels that are
    segmented as a structure (1, where none is: such a scan comes first). A single task has no disagreement: 0.

    Args:
        bundle_root: folder of the bundle, with its ``configs``.
        weights: state dict; ``models/model.pt`` of the bundle if None.
        device: where the network runs.
        overrides: keys of ``inference.json`` with other values.
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
        config.update({**(overrides or {}), "bundle_root": str(bundle_root), "device": device})
        self.device = device
        self.network = config.get_parsed_content("network").eval()
        path = Path(bundle_root) / "models" / "model.pt" if weights is None else weights
        self.network.load_state_dict(torch.load(path, map_location=device, weights_only=True))
        self.preprocessing = config.get_parsed_content("preprocessing")
        self.inferer = config.get_parsed_content("inferer")
        self.fuse = FuseTasksd("pred", num_classes=config.get_parsed_content("out_channels"), maps=True)

    @torch.no_grad()
    def __call__(self, image: str | os.PathLike[str]) -> dict[str, float]:
        """The scores of one file or DICOM series."""
        data: Mapping[str, Any] = self.preprocessing({"image": os.fspath(image)})
        answer = self.inferer(data["image"].as_tensor()[None].to(self.device), self.network)
        maps = self.fuse({"pred": answer[0].float()})
        segmented = max(int((maps["pred"].argmax(dim=0) > 0).sum()), 1)
        sums = {
            "disagreement": maps.get("pred_uncertainty", torch.zeros(1)).sum(dtype=torch.float64),
            "entropy": normalised_entropy(maps["pred"][None]).sum(dtype=torch.float64),
        }
        return {name: float(total) / segmented for name, total in sums.items()}
