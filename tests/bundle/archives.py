"""Scans as archives have them, and the inference that the tests run over them."""

from __future__ import annotations

import csv
import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import torch
from monai.bundle import ConfigWorkflow
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from dbisl.networks import DualTaskVNet
from tests.data import make_scans

GOOD = np.random.default_rng(0).normal(size=(20, 24, 22)).astype(np.float32)
"""Voxels of a scan that can be segmented."""
AFFINE = np.diag([1.0, 1.0, 1.5, 1.0])
"""The affine of the scans that :func:`write_scan` writes."""
CT = (100 * GOOD).astype(np.int16)
"""Voxels of a DICOM series that can be segmented."""


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


def write_slice(path: Path, plane: np.ndarray, number: int, **tags: Any) -> None:
    """Write an axial CT slice with columns 0.8 and rows 0.7 mm apart, ``2 * number`` mm above (-10, -20, 30)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = generate_uid()
    slice_ = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    slice_.SOPClassUID, slice_.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    slice_.SeriesInstanceUID, slice_.StudyInstanceUID, slice_.Modality = "1.2.3", "1.2", "CT"
    slice_.ContentDate = datetime.date(2026, 1, 1).strftime("%Y%m%d")
    slice_.ImageOrientationPatient, slice_.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-10, -20, 30 + 2 * number]
    slice_.PixelSpacing, slice_.SliceThickness, slice_.InstanceNumber = [0.7, 0.8], 2, number + 1
    slice_.Rows, slice_.Columns = plane.shape
    slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
    slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 16, 15, 1
    slice_.RescaleSlope, slice_.RescaleIntercept = 1, 0
    slice_.PixelData = np.ascontiguousarray(plane.astype(np.int16)).tobytes()
    for name, value in tags.items():
        setattr(slice_, name, value)
    pydicom.dcmwrite(path, slice_, enforce_file_format=True)


def write_series(folder: Path, voxels: np.ndarray, ending: str = ".dcm") -> None:
    """Write a DICOM series, one file per slice along the last axis."""
    for index in range(voxels.shape[2]):
        write_slice(folder / f"{index:03}{ending}", voxels[:, :, index].T, index)  # the rows of a plane are y
