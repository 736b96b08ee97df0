"""Read DICOM series in the form that archives store them, and check that a series is complete."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from monai.data import PydicomReader
from monai.utils import ensure_tuple

from dbisl.data.nifti import is_nifti, shape_text
from dbisl.utils.files import first_line

MAX_SHIFT = 0.25
"""How far a slice may lie from its regular position, as a part of the distance between slices.

Headers round positions, which shifts a slice less than this. A missing slice shifts others by half a distance.
"""


class DicomSeriesReader(PydicomReader):
    """MONAI reader that reads a folder with a DICOM series, whatever else lies in the folder.

    It finds the slices by their content, not by their names. It stacks them by their positions along their normal and
    not by their instance numbers, because some scanners number interleaved slices in the order of acquisition. The
    arguments are those of MONAI's class.
    """

    def read(self, data: Any, **kwargs: Any) -> Any:
        """Read the slices of a series.

        Args:
            data: the folder of the series, or a list with this folder only.
            **kwargs: options for ``pydicom.dcmread``; they override those of the constructor.

        Returns:
            The slices, from the lowest along their normal to the highest.
        """
        (folder,) = ensure_tuple(data)
        options = {**self.kwargs, **kwargs}
        slices = [(pydicom.dcmread(path, **options), str(path)) for path in _series_files(Path(folder))]
        slices.sort(key=lambda item: _height(item[0]))
        for number, (one, _) in enumerate(slices, start=1):
            one.InstanceNumber = number  # MONAI stacks by this number
        self.filenames: list[Any] = [[path for _, path in slices]]
        self.has_series = True
        return [one for one, _ in slices]


def is_dicom_series(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is a folder that holds DICOM files."""
    return next(_series_files(Path(path)), None) is not None


def is_dicom_file(path: Path) -> bool:
    """Return whether a path is a DICOM file, by its extension ``.dcm`` or by its content."""
    if not path.is_file():
        return False
    if path.suffix.lower() == ".dcm":
        return True
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def check_series(folder: Path, spatial_dims: int, in_channels: int) -> tuple[float, float]:
    """Read a whole series and check that :class:`DicomSeriesReader` stacks it correctly.

    MONAI stacks all slices of the folder and computes the affine from the first and the last. It does not notice a
    missing slice or a slice of another series.

    Args:
        folder: a folder with DICOM files.
        spatial_dims: number of spatial axes that the network expects; a series has 3.
        in_channels: number of channels that the network expects; a series has 1.

    Returns:
        The lowest and the highest stored value, before rescaling.

    Raises:
        ValueError: if the series cannot be used; the sentence says why.
    """
    if (spatial_dims, in_channels) != (3, 1):
        raise ValueError(
            f"{folder} is a DICOM series, which has 3 axes and 1 channel: expected {spatial_dims} axes (patch_size) "
            f"and {in_channels} channels (in_channels)."
        )
    slices, lowest, highest = [], np.inf, -np.inf
    for path in _series_files(folder):
        try:
            one = pydicom.dcmread(path)
            plane = one.pixel_array
        except Exception as error:  # pydicom and its decoders raise a dozen types
            raise ValueError(f"{path} cannot be read ({first_line(error)}): expected a complete DICOM slice.") from None
        if plane.ndim != 2:
            raise ValueError(
                f"{path} has the shape {shape_text(plane.shape)}: expected one slice with one number per pixel."
            )
        for name in ("RescaleSlope", "RescaleIntercept"):
            if name in one and one.get(name) is None:
                raise ValueError(f"{path} has the {name} without a value: expected a number, or no {name}.")
        lowest, highest = min(lowest, float(plane.min())), max(highest, float(plane.max()))
        for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"):
            one.pop(name, None)  # the headers are enough from here on, and the pixels of all slices are a whole volume
        slices.append((path, one))
    _check_headers(folder, slices)
    _check_positions(folder, slices)
    return lowest, highest


def _check_headers(folder: Path, slices: Sequence[tuple[Path, pydicom.Dataset]]) -> None:
    """Check that the slices have a position, and that they belong to one series of at least two slices."""
    for name, count in (("ImagePositionPatient", 3), ("ImageOrientationPatient", 6), ("PixelSpacing", 2)):
        for path, one in slices:
            values = one.get(name) or ()
            if np.shape(values) != (count,) or (name == "PixelSpacing" and min(values) <= 0):
                found = f"the {name} {values}" if values else f"no {name}"
                raise ValueError(f"{path} has {found}: expected {count} numbers in each slice of a series.")
    for name in ("SeriesInstanceUID", "Rows", "Columns", "PixelSpacing", "ImageOrientationPatient"):
        first, *others = (one.get(name) for _, one in slices)
        for (path, _), other in zip(slices[1:], others, strict=True):
            same = first == other if name == "SeriesInstanceUID" else np.allclose(first, other, atol=1e-3)
            if not same:
                raise ValueError(
                    f"{path} has the {name} {other}, but {slices[0][0].name} has {first}: "
                    "expected one series per folder."
                )
    if len(slices) < 2:
        raise ValueError(f"{folder} has one slice: expected a series of at least two.")


def _check_positions(folder: Path, slices: Sequence[tuple[Path, pydicom.Dataset]]) -> None:
    """Check that the slices lie at equal distances along a straight line."""
    slices = sorted(slices, key=lambda item: _height(item[1]))
    positions = np.array([one.ImagePositionPatient for _, one in slices], dtype=float)
    step = (positions[-1] - positions[0]) / (len(slices) - 1)
    shifts = np.linalg.norm(positions - positions[0] - np.arange(len(slices))[:, None] * step, axis=1)
    if _height(slices[0][1]) == _height(slices[-1][1]):
        raise ValueError(f"{folder} has all its slices at one height: expected them one above the other.")
    if shifts.max() > MAX_SHIFT * np.linalg.norm(step):
        raise ValueError(
            f"{slices[int(shifts.argmax())][0]} lies {shifts.max():.2f} mm from its regular position among "
            f"{len(slices)} slices at equal distances: expected a series with every slice, once."
        )


def _series_files(folder: Path) -> Iterator[Path]:
    """Yield the DICOM files of a folder by name. Archives seldom name them ``.dcm``, so their content decides."""
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        hidden = path.name.startswith(".")
        if not hidden and path.name.upper() != "DICOMDIR" and not is_nifti(path) and is_dicom_file(path):
            yield path


def _height(one: pydicom.Dataset) -> float:
    """Return the position of a slice along its normal, in millimetres."""
    row, column = np.reshape(np.asarray(one.ImageOrientationPatient, dtype=float), (2, 3))
    return float(np.dot(np.cross(row, column), np.asarray(one.ImagePositionPatient, dtype=float)))
