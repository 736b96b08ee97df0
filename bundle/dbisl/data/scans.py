"""Find the scans to segment, NIfTI files and DICOM series, and check that each of them can be segmented."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dbisl.data.dicom import check_series, is_dicom_file, is_dicom_series
from dbisl.data.nifti import image_problem, is_nifti, read_nifti
from dbisl.utils.errors import InputError

EXPECTED = "expected a folder with .nii.gz or .nii files or with DICOM series, or one such file or series"


def find_images(dataset_dir: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[dict[str, str]]:
    """Find the scans to segment.

    Args:
        dataset_dir: a NIfTI file, a folder of them, a DICOM series (a folder that holds its files), a folder with such
            folders at any depth, or a list of any of these. Files and folders whose name starts with a dot are left
            out. A path in a list that is not a scan stays in the result, so that :func:`check_image` can say why.

    Returns:
        ``{"image": path, "case": path}`` for each scan, as MONAI's datasets take them. The paths are absolute. Scans
        of one folder are sorted by name.

    Raises:
        InputError: if there is no scan.
    """
    several = isinstance(dataset_dir, (list, tuple))
    given: Any = dataset_dir if several else [dataset_dir]
    if not all(isinstance(root, (str, os.PathLike)) for root in given):
        raise InputError(f"dataset_dir is {dataset_dir!r}: {EXPECTED}, or a list of paths.")
    roots = [Path(root).expanduser() for root in given]
    images: dict[str, None] = {}
    for root in roots:
        found = _scans_in(root)
        if not found and not several:
            raise InputError(f"dataset_dir {_why_no_scan(root)}")
        images |= dict.fromkeys(os.path.abspath(path) for path in found or [root])
    if not images:
        raise InputError(f"dataset_dir is an empty list: {EXPECTED}.")
    return [{"image": image, "case": image} for image in images]


def check_image(path: str | os.PathLike[str], spatial_dims: int, in_channels: int) -> None:
    """Read one scan and check that it can be segmented.

    Args:
        path: a NIfTI file, or the folder of a DICOM series.
        spatial_dims: number of spatial axes that the network expects, 2 or 3.
        in_channels: number of channels of an image, as :func:`dbisl.data.check_cases` takes it.

    Raises:
        ValueError: if the scan cannot be segmented; the sentence says why.
    """
    if is_dicom_series(path):
        lowest, highest = check_series(Path(path), spatial_dims, in_channels)
    elif is_nifti(path):
        image, voxels, problem = read_nifti(path)
        if image is not None:
            problem = image_problem(path, image, voxels, spatial_dims, in_channels)
        if problem:
            raise ValueError(problem)
        lowest, highest = float(voxels.min()), float(voxels.max())
    else:
        raise ValueError(_why_no_scan(Path(path)))
    if lowest == highest:
        raise ValueError(f"{path} has the value {lowest:g} in every voxel: expected an image.")


def _scans_in(root: Path) -> list[Path]:
    """Return the scans that a path stands for: itself, or those in the folder."""
    if is_nifti(root):
        return [root]
    if not root.is_dir():
        return []
    series = _series_below(root)
    return series if root in series else [path for path in sorted(root.iterdir()) if is_nifti(path)] + series


def _series_below(root: Path, above: tuple[str, ...] = ()) -> list[Path]:
    """Return the folders that hold a DICOM series, from ``root`` down. ``above`` has the real paths on the way."""
    real = os.path.realpath(root)
    if real in above:  # a link to a folder on the way would lead round in a circle
        return []
    try:
        series = [root] if is_dicom_series(root) else []
        folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:  # the folder may not be read: check_image reports it
        return [root]
    for folder in folders:
        series += _series_below(folder, (*above, real))
    return series


def _why_no_scan(path: Path) -> str:
    """Return the sentence that says why a path is not a scan."""
    if path.is_dir():
        return f"{path} has no scans: {EXPECTED}."
    if not path.exists():
        return f"{path} does not exist: {EXPECTED}."
    if is_dicom_file(path):
        return f"{path} is one file of a DICOM series: expected the folder that holds the series."
    return f"{path} ends in neither .nii.gz nor .nii: {EXPECTED}."
