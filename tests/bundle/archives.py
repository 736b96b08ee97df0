"""Scans as archives have them, and the inference that the tests run over them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigWorkflow

from dbisl.networks import DualTaskVNet
from tests.data import make_scans

GOOD = np.random.default_rng(0).normal(size=(20, 24, 22)).astype(np.float32)
"""Voxels of a scan that can be segmented."""
AFFINE = np.diag([1.0, 1.0, 1.5, 1.0])
"""The affine of the scans that :func:`write_scan` writes."""


class Inference:
    """Runs ``inference.json`` in this process with a small untrained network, and reads what it wrote.

    Args:
        root: the repository.
        folder: where the weights and the output folder ``out`` go.

    Attributes:
        weights: the network's state dict; a test may replace the file.
        output_dir: the output folder.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        self.bundle = root / "bundle"
        self.weights = folder / "model.pt"
        self.output_dir = folder / "out"
        self.save_weights()

    def save_weights(self, **options: Any) -> None:
        """Write the weights of a new network with other options."""
        torch.manual_seed(0)
        network = DualTaskVNet(**{"out_channels": 3, "features": 4, "levels": 4, **options})
        torch.save(network.state_dict(), self.weights)

    def run(self, dataset_dir: Any, files: tuple[str, ...] = (), **options: Any) -> None:
        """Segment scans.

        Args:
            dataset_dir: the scans, as in ``inference.json``.
            files: config files to load after ``inference.json``.
            options: overrides of config keys.
        """
        overrides = {
            "dataset_dir": dataset_dir,
            "output_dir": str(self.output_dir),
            "ckpt_path": str(self.weights),
            "features": 4,
            "patch_size": [16, 16, 16],
            "device": "cpu",
            "amp": False,
        }
        workflow = ConfigWorkflow(
            config_file=[str(self.bundle / "configs" / name) for name in ("inference.json", *files)],
            workflow_type="infer",
            bundle_root=str(self.bundle),
            logging_file=False,
            **{**overrides, **options},
        )
        workflow.initialize()
        workflow.run()

    def rows(self) -> list[dict[str, str]]:
        """Return the rows of ``report.csv``."""
        with (self.output_dir / "report.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    def statuses(self) -> list[str]:
        """Return the status of each row of ``report.csv``."""
        return [row["status"] for row in self.rows()]

    def images(self) -> set[str]:
        """Return the names of the NIfTI files in the output folder."""
        return {path.name for path in self.output_dir.glob("*.nii.gz")}


def write_scan(path: Path, voxels: np.ndarray) -> Path:
    """Write a NIfTI file with voxels of 1 x 1 x 1.5 mm, and return its path."""
    return make_scans.write_scan(path, voxels, AFFINE)
