"""Scans on disk -> labeled, unlabeled and validation cases, and the checks that run before any training.

:func:`find_cases` reads a folder or a datalist, :func:`check_cases` reads every file once. Both raise
:class:`InputError` with a sentence that names the file or the key, what was found and what was expected.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from dbisl.data.nifti import READERS, read_nifti
from dbisl.utils.errors import InputError


def mark_unannotated_slices(label: np.ndarray) -> np.ndarray:
    """A label whose slices without any structure are marked as not annotated (255).

    The slices are those along the axis with the most gaps between outlines, then with the fewest outlines: an annotator
    who outlines every fifth axial slice leaves a gap after each, while sagittal and coronal slices have as many as
    there are spaces between structures.

    Args:
        label: class indices, an axis for each dimension.

    Returns:
        A new array of unsigned bytes.

    Raises:
        ValueError: when there is no structure in the label, or a value that is no whole number from 0 to 255.
    """
    wrong = label[(label < 0) | (label > IGNORE_LABEL) | (label != np.floor(label))]
    if wrong.size:
        raise ValueError(f"has the value {wrong[0]:g}: expected whole numbers from 0 to {IGNORE_LABEL}.")
    if not ((label > 0) & (label != IGNORE_LABEL)).any():
        raise ValueError("has no voxel of a structure: expected an outline in one slice at least.")
    annotated = [
        ((label > 0) & (label != IGNORE_LABEL)).any(axis=tuple(other for other in range(label.ndim) if other != axis))
        for axis in range(label.ndim)
    ]

    def gaps(axis: int) -> int:
        """Runs of empty slices between the first annotated one and the last."""
        return int((np.diff(np.flatnonzero(annotated[axis])) > 1).sum())

    across = min(range(label.ndim), key=lambda axis: (-gaps(axis), annotated[axis].mean()))
    marked = label.astype(np.uint8)
    np.moveaxis(marked, across, 0)[~annotated[across]] = IGNORE_LABEL
    return marked


def mark_file(path: str | os.PathLike[str]) -> None:
    """Mark a label file's slices without any structure as not annotated, in place and at once.

    Raises:
        InputError: when no structure is in it, or something that is no label.
    """
    path = Path(path)
    image = nib.load(path)
    try:
        marked = mark_unannotated_slices(np.asanyarray(image.dataobj))  # type: ignore[attr-defined]
    except ValueError as error:
        raise InputError(f"{path} {error}") from None
    header = image.header.copy()
    header.set_data_dtype(np.uint8)  # type: ignore[attr-defined]
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    nib.save(nib.Nifti1Image(marked, image.affine, header), temporary)  # type: ignore[attr-defined]
    os.replace(temporary, path)


IGNORE_LABEL = 255
"""Value of a voxel in a label of which the annotator has said nothing."""


def unlabeled_scans(
    unlabeled: Sequence[Mapping[str, Any]], labeled: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The scans without a label, and those whose label holds 255: where nothing was annotated they are unlabeled too.

    Args:
        unlabeled: cases, ``{"image": path}``.
        labeled: cases with labels. A label that cannot be read is passed over: :func:`check_cases` reports it.

    Returns:
        ``{"image": path}`` of each.
    """

    def is_partial(case: Mapping[str, Any]) -> bool:
        return bool((read_nifti(case["label"])[1] == IGNORE_LABEL).any())

    with ThreadPoolExecutor(READERS) as pool:
        partial = list(pool.map(is_partial, labeled))
    known = {str(case["image"]) for case in unlabeled}
    images = [case["image"] for case, chosen in zip(labeled, partial, strict=True) if chosen]
    return [*map(dict, unlabeled), *({"image": image} for image in images if str(image) not in known)]
