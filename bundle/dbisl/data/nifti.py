"""Scans on disk -> labeled, unlabeled and validation cases, and the checks that run before any training.

:func:`find_cases` reads a folder or a datalist, :func:`check_cases` reads every file once. Both raise
:class:`InputError` with a sentence that names the file or the key, what was found and what was expected.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
from nibabel.spatialimages import SpatialImage

from dbisl.utils.files import EXTENSIONS

READERS = 4
"""Threads that read files: as many whole volumes are in memory at a time."""


def is_nifti(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a file that is named as a NIfTI file.

    Hidden ones are not (macOS leaves ``._name`` beside each name). A link that leads nowhere is: whoever reads it can
    then say so.
    """
    path = Path(path)
    named = path.name.lower().endswith(EXTENSIONS) and not path.name.startswith(".")
    return named and (path.is_file() or path.is_symlink()) and not path.is_dir()


def read_nifti(path: Any) -> tuple[SpatialImage | None, np.ndarray, str]:
    """A NIfTI file's header and voxels, and the sentence that says why it cannot be read (empty if it can)."""
    nothing = np.empty(0)
    if not os.path.isfile(path):
        return None, nothing, f"{path} does not exist: expected a NIfTI file."
    try:
        image = cast(SpatialImage, nib.load(os.fspath(path)))
        # A truncated file has a sound header: only its voxels show it.
        return image, np.asanyarray(image.dataobj), ""
    except Exception as error:  # nibabel, gzip and zlib raise a dozen types on a broken file
        text = str(error).replace(os.fspath(path), os.path.basename(path))
        reason = (text.splitlines() or [""])[0][:100] or type(error).__name__
        return None, nothing, f"{path} cannot be read ({reason}): expected a complete NIfTI file."


def _spatial_shape(shape: tuple[int, ...], dims: int, channels: int) -> tuple[int, ...] | None:
    """The spatial part of a file's shape, or None where the file has other axes than expected."""
    if len(shape) == dims and channels == 1:
        return shape
    # NIfTI may store a single volume as W x H x D x 1, and stores channels last. Of a W x H x 1 file MONAI's reader
    # makes a volume, so that two dimensions take no further axis.
    return shape[:-1] if dims == 3 and len(shape) == 4 and shape[-1] == channels else None


def image_problems(path: Any, image: SpatialImage, voxels: np.ndarray, dims: int, in_channels: int) -> list[str]:
    """What keeps an image that could be read from being used, as :func:`check_cases` says it; at most one sentence."""
    shape = shape_text(image.shape)
    if _spatial_shape(image.shape, dims, in_channels) is None:
        axes = f"{dims} axes" if in_channels == 1 else f"{dims} axes and a last one of size {in_channels}"
        return [f"{path} has the shape {shape}: expected {axes} (in_channels is {in_channels})."]
    if 0 in image.shape:
        return [f"{path} has the shape {shape}: expected no axis of size 0."]
    if voxels.dtype.kind not in "iuf":
        return [f"{path} holds voxels of type {voxels.dtype}: expected one number a voxel."]
    if not np.isfinite(image.affine).all() or np.linalg.matrix_rank(image.affine[:3, :3]) < 3:
        return [f"{path} has an affine that cannot be inverted: expected three axes with a size above 0."]
    unit = _other_unit(image)
    if unit:
        return [f"{path} gives its voxel size in {unit} (xyzt_units in its header): expected millimetres."]
    if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
        count = int(np.count_nonzero(~np.isfinite(voxels)))
        return [f"{path} has {count} voxels that are NaN or infinite: expected finite numbers."]
    return []


def _other_unit(image: SpatialImage) -> str:
    """The unit of a file that says its unit is another than the millimetre, for which MONAI would take it."""
    code = int(image.header["xyzt_units"]) & 7 if isinstance(image.header, nib.Nifti1Header) else 0
    return {1: "metres", 3: "micrometres"}.get(code, "")


def shape_text(shape: Iterable[int]) -> str:
    return " x ".join(str(size) for size in shape)
