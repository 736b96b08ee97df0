"""Which scans of an archive to segment, and whether each of them can be: NIfTI files and DICOM series."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dbisl.data.dicom import _is_dicom, _read_series, is_dicom_series
from dbisl.data.nifti import image_problems, is_nifti, read_nifti
from dbisl.utils.errors import InputError

EXPECTED = "expected a folder with .nii.gz or .nii files or with DICOM series, or one such file or series"


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


def check_image(path: str | os.PathLike[str], spatial_dims: int, in_channels: int) -> None:
    """Read one scan and see whether it can be segmented.

    Args:
        path: of a NIfTI file or a DICOM series.
        spatial_dims: 2 or 3.
        in_channels: channels of an image, as in :func:`dbisl.data.check_cases`.

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


def _why_no_scan(path: Path) -> str:
    if path.is_dir():
        return f"{path} has no scans: {EXPECTED}."
    if not path.exists():
        return f"{path} does not exist: {EXPECTED}."
    if _is_dicom(path):
        return f"{path} is one file of a DICOM series: expected the folder that holds the series."
    return f"{path} ends in neither .nii.gz nor .nii: {EXPECTED}."
