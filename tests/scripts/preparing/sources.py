"""Small data sets in the forms that ``scripts/prepare.py`` reads, and what the tests look at in its output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from dbisl.data import check_cases, find_cases
from scripts.preparing.dicom import SEGMENTATION
from tests.data.make_series import write_slice

SHAPE = (9, 8, 7)
AFFINE = np.array([[-0.8, 0, 0, 12], [0, -0.7, 0, 30], [0, 0, 2, -5], [0, 0, 0, 1]])
"""Voxels that run left, posterior and superior, as most scanners write them."""


def image(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(-200, 300, shape).astype(np.int16)


def label(*values: int) -> np.ndarray:
    """One block of each value, none of them symmetric about the middle."""
    voxels = np.zeros(SHAPE, np.uint8)
    for index, value in enumerate(values):
        voxels[1 + 2 * index : 3 + 2 * index, 1:4, 2:4] = value
    return voxels


def write(path: Path, voxels: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


def voxels_of(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def record(output: Path) -> dict[str, Any]:
    return json.loads((output / "dataset.json").read_text())


def by_place(path: Path) -> dict[tuple[float, ...], float]:
    """The non-zero voxels of a file by their place in millimetres, so that the order of the axes does not matter."""
    file = nib.load(path)
    voxels = np.asarray(file.dataobj)
    indices = np.argwhere(voxels)
    places = nib.affines.apply_affine(file.affine, indices).round(2) + 0.0
    return {tuple(place): voxels[tuple(index)] for place, index in zip(places.tolist(), indices, strict=True)}


def check(output: Path, labeled: int, unlabeled: int = 0, classes: int = 2, channels: int = 1) -> None:
    """Training accepts the folder."""
    cases = find_cases(output)
    assert len(cases.labeled) + len(cases.validation) == labeled and len(cases.unlabeled) == unlabeled
    lists = {"labeled": cases.labeled, "unlabeled": cases.unlabeled, "validation": cases.validation}
    options = {"patch_size": [8, 8, 8], "patch_divisor": [4, 4, 4], "spacing": [1.0, 1.0, 1.0]}
    check_cases(**lists, **options, in_channels=channels, class_names=[f"class {index}" for index in range(classes)])


def nnunet(root: Path, labels: dict[str, Any], values: tuple[int, ...]) -> Path:
    for case in "ab":
        for channel in range(2):
            write(root / "imagesTr" / f"{case}_{channel:04d}.nii.gz", image(channel))
    write(root / "labelsTr" / "a.nii.gz", label(*values))
    write(root / "imagesTs" / "test_0000.nii.gz", image())
    (root / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T1", "1": "T2"}, "labels": labels}))
    return root


def brats(root: Path, cases: tuple[str, ...] = ("HGG/BraTS19_A", "LGG/BraTS19_B")) -> Path:
    for case in cases:
        name = Path(case).name
        for seed, channel in enumerate(("flair", "t1", "t1ce", "t2")):
            write(root / case / f"{name}_{channel}.nii.gz", image(seed))
        write(root / case / f"{name}_seg.nii.gz", label(4, 2, 1))
    return root


def write_hdf5(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["image"], file["label"] = np.random.default_rng(seed).normal(size=SHAPE), label(1, 2)


def write_series(folder: Path, voxels: np.ndarray, **tags: Any) -> None:
    """A series whose rows are y; file names say nothing about the order."""
    order = np.random.default_rng(0).permutation(voxels.shape[2])
    for number, index in enumerate(order):
        write_slice(folder / f"{number}.dcm", voxels[:, :, index].T, int(index), **tags)


def write_segmentation(path: Path, series: str, segments: dict[str, np.ndarray], fractional: bool = False) -> None:
    """A DICOM-SEG: one frame for each slice that a segment touches, from the highest slice down.

    Args:
        path: the file.
        series: SeriesInstanceUID of the images, as ``write_slice`` places them.
        segments: mask of each segment, ``W x H x D``.
        fractional: whether it has one byte a pixel, 200 of 255 inside and 100 outside, and not one bit.
    """
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = SEGMENTATION, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = generate_uid()
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = SEGMENTATION, meta.MediaStorageSOPInstanceUID
    data.SeriesInstanceUID, data.Modality, data.SegmentationType = generate_uid(), "SEG", "BINARY"
    reference, shared, measures, orientation = Dataset(), Dataset(), Dataset(), Dataset()
    reference.SeriesInstanceUID = series
    data.ReferencedSeriesSequence = [reference]
    measures.PixelSpacing, measures.SliceThickness = [0.7, 0.8], 2
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    data.SharedFunctionalGroupsSequence = [shared]
    data.SegmentSequence, data.PerFrameFunctionalGroupsSequence, planes = [], [], []
    for number, (name, mask) in enumerate(segments.items(), start=1):
        segment = Dataset()
        segment.SegmentNumber, segment.SegmentLabel = number, name
        data.SegmentSequence.append(segment)
        for index in np.flatnonzero(mask.any(axis=(0, 1)))[::-1]:
            position, identification, groups = Dataset(), Dataset(), Dataset()
            position.ImagePositionPatient = [-10, -20, 30 + 2 * int(index)]
            identification.ReferencedSegmentNumber = number
            groups.PlanePositionSequence, groups.SegmentIdentificationSequence = [position], [identification]
            data.PerFrameFunctionalGroupsSequence.append(groups)
            planes.append(mask[:, :, index].T)
    data.NumberOfFrames, data.Columns, data.Rows = len(planes), *SHAPE[:2]
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 1, 1, 0
    if fractional:
        data.SegmentationType, data.MaximumFractionalValue = "FRACTIONAL", 255
        data.BitsAllocated, data.BitsStored, data.HighBit = 8, 8, 7
        data.PixelData = np.where(np.stack(planes), 200, 100).astype(np.uint8).tobytes()
    else:
        data.PixelData = np.packbits(np.concatenate([plane.ravel() for plane in planes]), bitorder="little").tobytes()
    if len(data.PixelData) % 2:
        data.PixelData += b"\0"
    pydicom.dcmwrite(path, data, enforce_file_format=True)
