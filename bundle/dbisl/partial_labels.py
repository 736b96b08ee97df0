"""Labels of which only some slices were annotated."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np

from dbisl.cases import UNKNOWN, InputError


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
    wrong = label[(label < 0) | (label > UNKNOWN) | (label != np.floor(label))]
    if wrong.size:
        raise ValueError(f"has the value {wrong[0]:g}: expected whole numbers from 0 to {UNKNOWN}.")
    if not ((label > 0) & (label != UNKNOWN)).any():
        raise ValueError("has no voxel of a structure: expected an outline in one slice at least.")
    annotated = [
        ((label > 0) & (label != UNKNOWN)).any(axis=tuple(other for other in range(label.ndim) if other != axis))
        for axis in range(label.ndim)
    ]

    def gaps(axis: int) -> int:
        """Runs of empty slices between the first annotated one and the last."""
        return int((np.diff(np.flatnonzero(annotated[axis])) > 1).sum())

    across = min(range(label.ndim), key=lambda axis: (-gaps(axis), annotated[axis].mean()))
    marked = label.astype(np.uint8)
    np.moveaxis(marked, across, 0)[~annotated[across]] = UNKNOWN
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
