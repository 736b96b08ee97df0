"""Labels that are annotated in some slices only, and the scans that have such a label."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import nibabel as nib
import numpy as np
from nibabel.spatialimages import SpatialImage

from dbisl.data.nifti import READERS, read_nifti
from dbisl.utils.errors import InputError
from dbisl.utils.files import atomic_path

IGNORE_LABEL = 255
"""Label value of a voxel that the annotator did not label. Losses and metrics ignore it."""


def mark_unannotated_slices(label: np.ndarray) -> np.ndarray:
    """Set every slice without a structure to 255 (not annotated).

    The slices are taken along the axis on which the annotated slices have the most gaps between them. If two axes have
    as many, the axis with fewer annotated slices wins. For example, an annotator who outlines every fifth axial slice
    leaves a gap after each of them, while on the other axes the only gaps are the spaces between structures.

    Args:
        label: class indices, ``*spatial``. Voxels that are 255 already stay so.

    Returns:
        A new array of unsigned bytes, of the same shape.

    Raises:
        ValueError: if the label has no structure, or a value that is not a whole number from 0 to 255.
    """
    wrong = label[(label < 0) | (label > IGNORE_LABEL) | (label != np.floor(label))]
    if wrong.size:
        raise ValueError(f"The label has the value {wrong[0]:g}: expected whole numbers from 0 to {IGNORE_LABEL}.")
    structure = (label > 0) & (label != IGNORE_LABEL)
    if not structure.any():
        raise ValueError("The label has no voxel of a structure: expected an outline in at least one slice.")
    annotated = [
        structure.any(axis=tuple(other for other in range(label.ndim) if other != axis)) for axis in range(label.ndim)
    ]

    def count_gaps(axis: int) -> int:
        """Count the runs of empty slices between the first annotated slice and the last."""
        return int((np.diff(np.flatnonzero(annotated[axis])) > 1).sum())

    across = min(range(label.ndim), key=lambda axis: (-count_gaps(axis), annotated[axis].mean()))
    marked = label.astype(np.uint8)
    np.moveaxis(marked, across, 0)[~annotated[across]] = IGNORE_LABEL
    return marked


def mark_file(path: str | os.PathLike[str]) -> None:
    """Set every slice without a structure of a label file to 255 (not annotated), in place and in one step.

    Args:
        path: a NIfTI file with class indices.

    Raises:
        InputError: if the label has no structure, or values that are not class indices. The file stays as it was.
    """
    image = nib.load(path)
    try:
        marked = mark_unannotated_slices(np.asanyarray(image.dataobj))  # type: ignore[attr-defined]
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    write_label(path, marked, cast(SpatialImage, image))


def write_label(path: str | os.PathLike[str], label: np.ndarray, like: SpatialImage) -> None:
    """Write class indices as a NIfTI file of unsigned bytes.

    Args:
        path: where to write it.
        label: class indices from 0 to 255, on the grid of ``like``.
        like: image whose affine and header the file gets.
    """
    header = like.header.copy()
    header.set_data_dtype(np.uint8)
    with atomic_path(path) as temporary:
        nib.save(nib.Nifti1Image(label, like.affine, header), temporary)


def unlabeled_scans(
    unlabeled: Sequence[Mapping[str, Any]], labeled: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return the scans of the unlabeled stream: those without a label, and those with a partial one.

    A label is partial if it holds 255. Such a scan is unlabeled where nothing was annotated.

    Args:
        unlabeled: cases without a label, ``{"image": path}``.
        labeled: cases with labels, ``{"image": path, "label": path}``. A label that cannot be read counts as whole:
            :func:`dbisl.data.check_cases` reports it.

    Returns:
        ``{"image": path}`` for each of these scans.
    """

    def is_partial(case: Mapping[str, Any]) -> bool:
        _, voxels, _ = read_nifti(case["label"])
        return bool((voxels == IGNORE_LABEL).any())

    with ThreadPoolExecutor(READERS) as pool:
        partial = list(pool.map(is_partial, labeled))
    listed = {str(case["image"]) for case in unlabeled}
    images = [case["image"] for case, chosen in zip(labeled, partial, strict=True) if chosen]
    return [*map(dict, unlabeled), *({"image": image} for image in images if str(image) not in listed)]
