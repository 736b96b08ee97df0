"""Which scans of an archive to segment, and whether each of them can be: NIfTI files and DICOM series."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from monai.data import PydicomReader
from monai.utils import ensure_tuple

from dbisl.cases import InputError, image_problems, is_nifti, read_nifti

EXPECTED = "expected a folder with .nii.gz or .nii files or with DICOM series, or one such file or series"
MAX_SHIFT = 0.25
"""Part of the distance between slices by which one may lie elsewhere: headers round, a missing slice shifts by half."""


def find_images(dataset_dir: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[dict[str, str]]:
    """The scans to segment, as MONAI's datasets take them: ``{"image": path, "case": path}``, absolute, by name.

    Args:
        dataset_dir: a NIfTI file, a folder of them, a DICOM series (a folder that holds its files), a folder with such
            folders at any depth, or a list of any of these. Files and folders whose name starts with a dot are left
            out. An entry of a list that is no scan stays in, for :func:`check_image` to say why.

    Raises:
        InputError: when there is none.
    """
    several = isinstance(dataset_dir, (list, tuple))
    given: Any = dataset_dir if several else [dataset_dir]
    if not all(isinstance(root, (str, os.PathLike)) for root in given):
        raise InputError(f"dataset_dir is {dataset_dir!r}: {EXPECTED}, or a list of paths.")
    roots = [Path(root).expanduser() for root in given]
    images: dict[str, None] = {}
    for root in roots:
        found = _images_of(root)
        if not found and not several:
            raise InputError(f"dataset_dir {_why_no_scan(root)}")
        images |= dict.fromkeys(os.path.abspath(path) for path in found or [root])
    if not images:
        raise InputError(f"dataset_dir is an empty list: {EXPECTED}.")
    return [{"image": image, "case": image} for image in images]


def is_dicom_series(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a folder that holds DICOM files."""
    return next(_dicom_files(Path(path)), None) is not None


def check_image(path: str | os.PathLike[str], spatial_dims: int, in_channels: int) -> None:
    """Read one scan and see whether it can be segmented.

    Args:
        path: of a NIfTI file or a DICOM series.
        spatial_dims: 2 or 3.
        in_channels: channels of an image, as in :func:`dbisl.cases.check_cases`.

    Raises:
        ValueError: when it cannot, with the sentence that says why.
    """
    if is_dicom_series(path):
        problem, lowest, highest = _read_series(Path(path), spatial_dims, in_channels)
    elif not is_nifti(path):
        raise ValueError(_why_no_scan(Path(path)))
    else:
        image, voxels, problem = read_nifti(path)
        if image is not None:
            problem = next(iter(image_problems(path, image, voxels, spatial_dims, in_channels)), "")
        lowest, highest = (0.0, 1.0) if problem else (float(voxels.min()), float(voxels.max()))
    if not problem and lowest == highest:
        problem = f"{path} has the value {lowest:g} in every voxel: expected an image."
    if problem:
        raise ValueError(problem)


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


def _images_of(root: Path) -> list[Path]:
    if is_nifti(root):
        return [root]
    if not root.is_dir():
        return []
    series = _series_below(root)
    return series if root in series else [path for path in sorted(root.iterdir()) if is_nifti(path)] + series


def _series_below(root: Path, above: tuple[str, ...] = ()) -> list[Path]:
    real = os.path.realpath(root)
    if real in above:  # a link to a folder that it is in
        return []
    try:
        series = [root] if is_dicom_series(root) else []
        folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:  # nobody may read it: check_image says so
        return [root]
    for folder in folders:
        series += _series_below(folder, (*above, real))
    return series


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


def _why_no_scan(path: Path) -> str:
    if path.is_dir():
        return f"{path} has no scans: {EXPECTED}."
    if not path.exists():
        return f"{path} does not exist: {EXPECTED}."
    if _is_dicom(path):
        return f"{path} is one file of a DICOM series: expected the folder that holds the series."
    return f"{path} ends in neither .nii.gz nor .nii: {EXPECTED}."


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
