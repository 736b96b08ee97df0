"""Which scans of an archive to segment, and whether each of them can be: NIfTI files and DICOM series."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from monai.data import PydicomReader
from monai.utils import ensure_tuple

from dbisl.data.nifti import is_nifti

MAX_SHIFT = 0.25
"""Part of the distance between slices by which one may lie elsewhere: headers round, a missing slice shifts by half."""


def is_dicom_series(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a folder that holds DICOM files."""
    return next(_dicom_files(Path(path)), None) is not None


class DicomSeriesReader(PydicomReader):
    """MONAI's reader of DICOM, for folders as archives have them.

    Of a folder it reads the slices alone, whatever else lies there, and stacks them by their positions, not by their
    instance numbers, which some scanners interleave. The arguments are those of MONAI's class.
    """

    def read(self, data: Any, **kwargs: Any) -> Any:
        """The slices of the folder ``data`` (or the one in it), from the lowest along their normal to the highest."""
        (folder,) = ensure_tuple(data)
        options = {**self.kwargs, **kwargs}
        slices = [(pydicom.dcmread(path, **options), str(path)) for path in _dicom_files(Path(folder))]
        slices.sort(key=lambda item: _height(item[0]))
        for number, (one, _) in enumerate(slices, start=1):
            one.InstanceNumber = number  # by which MONAI stacks
        self.filenames: list[Any] = [[path for _, path in slices]]
        self.has_series = True
        return [one for one, _ in slices]


def _dicom_files(folder: Path) -> Iterator[Path]:
    """The slices in a folder, by what is in them: an archive seldom names them ``.dcm``."""
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if not path.name.startswith(".") and path.name.upper() != "DICOMDIR" and not is_nifti(path) and _is_dicom(path):
            yield path


def _is_dicom(path: Path) -> bool:
    if not path.is_file():
        return False
    if path.suffix.lower() == ".dcm":
        return True
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _read_series(folder: Path, spatial_dims: int, in_channels: int) -> tuple[str, float, float]:
    """What is wrong with a series ("" if nothing), and the lowest and highest value that it stores.

    :class:`DicomSeriesReader` stacks all slices and takes the affine from the first and the last: what would be stacked
    wrongly is refused here.
    """
    if (spatial_dims, in_channels) != (3, 1):
        wanted = f"{spatial_dims} axes (patch_size) and {in_channels} channels (in_channels)"
        return f"{folder} is a DICOM series, of 3 axes and 1 channel: expected {wanted}.", 0.0, 1.0
    slices, lowest, highest = [], np.inf, -np.inf
    for path in _dicom_files(folder):
        try:
            one = pydicom.dcmread(path)
            plane = one.pixel_array
        except Exception as error:  # pydicom and its decoders raise a dozen types
            reason = (str(error).splitlines() or [""])[0][:100] or type(error).__name__
            return f"{path} cannot be read ({reason}): expected a complete DICOM slice.", 0.0, 1.0
        if plane.ndim != 2:
            shape = " x ".join(map(str, plane.shape))
            return f"{path} has the shape {shape}: expected one slice of one number a pixel.", 0.0, 1.0
        for name in ("RescaleSlope", "RescaleIntercept"):
            if name in one and one.get(name) is None:
                return f"{path} has the {name} without a value: expected a number, or no {name}.", 0.0, 1.0
        lowest, highest = min(lowest, float(plane.min())), max(highest, float(plane.max()))
        for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"):
            one.pop(name, None)  # a whole volume of them: only the headers are compared
        slices.append((path, one))
    return _series_problem(folder, slices), lowest, highest


def _series_problem(folder: Path, slices: list[tuple[Path, Any]]) -> str:
    for name, count in (("ImagePositionPatient", 3), ("ImageOrientationPatient", 6), ("PixelSpacing", 2)):
        for path, one in slices:
            values = one.get(name) or ()
            if np.shape(values) != (count,) or (name == "PixelSpacing" and min(values) <= 0):
                return (
                    f"{path} has the {name} {values or 'nowhere'}: expected {count} numbers in each slice of a series."
                )
    for name in ("SeriesInstanceUID", "Rows", "Columns", "PixelSpacing", "ImageOrientationPatient"):
        first, *others = (one.get(name) for _, one in slices)
        for (path, _), other in zip(slices[1:], others, strict=True):
            same = first == other if name == "SeriesInstanceUID" else np.allclose(first, other, atol=1e-3)
            if not same:
                return (
                    f"{path} has the {name} {other}, but {slices[0][0].name} has {first}: expected one series a folder."
                )
    if len(slices) < 2:
        return f"{folder} has one slice: expected a series of two at least."
    slices = sorted(slices, key=lambda item: _height(item[1]))
    positions = np.array([one.ImagePositionPatient for _, one in slices], dtype=float)
    step = (positions[-1] - positions[0]) / (len(slices) - 1)
    shifts = np.linalg.norm(positions - positions[0] - np.arange(len(slices))[:, None] * step, axis=1)
    if _height(slices[0][1]) == _height(slices[-1][1]):
        return f"{folder} has all its slices at one height: expected them one above the other."
    if shifts.max() > MAX_SHIFT * np.linalg.norm(step):
        return (
            f"{slices[int(shifts.argmax())][0]} lies {shifts.max():.2f} mm from where it would be among "
            f"{len(slices)} slices at equal distances: expected a series with every slice, once."
        )
    return ""


def _height(one: pydicom.Dataset) -> float:
    """Position of a slice along its normal, in millimetres."""
    row, column = np.reshape(np.asarray(one.ImageOrientationPatient, dtype=float), (2, 3))
    return float(np.dot(np.cross(row, column), np.asarray(one.ImagePositionPatient, dtype=float)))
