"""DICOM series for the tests."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

CT = (100 * np.random.default_rng(0).normal(size=(20, 24, 22))).astype(np.int16)
"""Voxels of a DICOM series that can be segmented."""


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
