"""Read NIfTI files, and say in one sentence why a file cannot be used."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
from nibabel.spatialimages import SpatialImage

from dbisl.utils.files import EXTENSIONS, first_line

READERS = 4
"""Threads that read files. Each may have a whole volume in memory."""


def is_nifti(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is a file with the name of a NIfTI file.

    Hidden files do not count: macOS leaves a ``._name`` beside each file. A broken link counts, so that reading it
    gives a clear error.
    """
    path = Path(path)
    named = path.name.lower().endswith(EXTENSIONS) and not path.name.startswith(".")
    return named and (path.is_file() or path.is_symlink()) and not path.is_dir()


def read_nifti(path: Any) -> tuple[SpatialImage | None, np.ndarray, str]:
    """Read the header and all voxels of a NIfTI file.

    Returns:
        The image with its header, its voxels, and an empty string. For a file that cannot be read: None, an empty
        array, and the sentence that says why.
    """
    nothing = np.empty(0)
    if not os.path.isfile(path):
        return None, nothing, f"{path} does not exist: expected a NIfTI file."
    try:
        image = cast(SpatialImage, nib.load(os.fspath(path)))
        # A truncated file has a sound header. Only reading its voxels shows the damage.
        return image, np.asanyarray(image.dataobj), ""
    except Exception as error:  # nibabel, gzip and zlib raise a dozen types on a broken file
        # The sentence names the path already, so the reason only needs the name of the file.
        reason = first_line(error, 10_000).replace(os.fspath(path), os.path.basename(path))[:100]
        return None, nothing, f"{path} cannot be read ({reason}): expected a complete NIfTI file."


def image_problem(path: Any, image: SpatialImage, voxels: np.ndarray, dims: int, in_channels: int) -> str:
    """Return the sentence that says why an image cannot be used, or an empty string.

    Args:
        path: the file, for the sentence.
        image: the file's header, as :func:`read_nifti` returns it.
        voxels: the file's voxels, as :func:`read_nifti` returns them.
        dims: number of spatial axes, 2 or 3.
        in_channels: number of channels, as :func:`dbisl.data.check_cases` takes it.
    """
    shape = shape_text(image.shape)
    if spatial_shape(image.shape, dims, in_channels) is None:
        axes = f"{dims} axes" if in_channels == 1 else f"{dims} axes and a last one of size {in_channels}"
        return f"{path} has the shape {shape}: expected {axes} (in_channels is {in_channels})."
    if 0 in image.shape:
        return f"{path} has the shape {shape}: expected no axis of size 0."
    if voxels.dtype.kind not in "iuf":
        return f"{path} holds voxels of type {voxels.dtype}: expected one number per voxel."
    if not np.isfinite(image.affine).all() or np.linalg.matrix_rank(image.affine[:3, :3]) < 3:
        return f"{path} has an affine that cannot be inverted: expected three axes with a size above 0."
    unit = _unit_other_than_millimetre(image)
    if unit:
        return f"{path} gives its voxel size in {unit} (xyzt_units in its header): expected millimetres."
    if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
        count = int(np.count_nonzero(~np.isfinite(voxels)))
        return f"{path} has {count} voxels that are NaN or infinite: expected finite numbers."
    return ""


def spatial_shape(shape: tuple[int, ...], dims: int, channels: int) -> tuple[int, ...] | None:
    """Return the spatial part of a file's shape, or None if the file has other axes than expected.

    Args:
        shape: the shape of the file, with its channels (if there are several) on the last axis.
        dims: number of spatial axes, 2 or 3.
        channels: number of channels.
    """
    if len(shape) == dims and channels == 1:
        return shape
    # NIfTI may store a single volume as W x H x D x 1, and stores channels last. MONAI's reader turns a W x H x 1 file
    # into a volume, so an image with two axes must not have a third one.
    return shape[:-1] if dims == 3 and len(shape) == 4 and shape[-1] == channels else None


def shape_text(shape: Iterable[int]) -> str:
    """Return a shape as messages show it, such as ``64 x 64 x 32``."""
    return " x ".join(str(size) for size in shape)


def _unit_other_than_millimetre(image: SpatialImage) -> str:
    """Return the unit that the header gives, or an empty string for millimetres and for no unit.

    MONAI reads every voxel size as millimetres.
    """
    code = int(image.header["xyzt_units"]) & 7 if isinstance(image.header, nib.Nifti1Header) else 0
    return {1: "metres", 3: "micrometres"}.get(code, "")
