"""Labels of which only some slices were annotated."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np

from dbisl.cases import UNKNOWN, InputError


def mark_unannotated_slices(label: np.ndarray) -> np.ndarray:
    """A label whose slices without any structure are marked as not annotated (255).

    The slices are those across which fewest are annotated: an annotator who outlines every fifth axial slice leaves
    most of these empty, while every sagittal and coronal one holds some of each outline.

    Args:
        label: class indices, an axis for each dimension.

    Returns:
        A new array of unsigned bytes.

    Raises:
        ValueError: when there is no structure in the label, or a class above 254.
    """
    if not (label > 0).any() or label.max() > UNKNOWN:
        raise ValueError(f"expected some voxels of a structure and classes below {UNKNOWN}, up to {label.max()} found.")
    annotated = [
        ((label > 0) & (label != UNKNOWN)).any(axis=tuple(other for other in range(label.ndim) if other != axis))
        for axis in range(label.ndim)
    ]

    def share(axis: int) -> float:
        """Annotated slices among those from the first annotated one to the last."""
        places = np.flatnonzero(annotated[axis])
        return len(places) / (places[-1] - places[0] + 1)

    across = min(range(label.ndim), key=lambda axis: (share(axis), annotated[axis].mean()))
    marked = label.astype(np.uint8)
    np.moveaxis(marked, across, 0)[~annotated[across]] = UNKNOWN
    return marked


def mark_file(path: str | os.PathLike[str]) -> None:
    """Mark a label file's slices without any structure as not annotated, in place and at once.

    Raises:
        InputError: when no structure is in it.
    """
    path = Path(path)
    image = nib.load(path)
    try:
        marked = mark_unannotated_slices(np.asanyarray(image.dataobj))  # type: ignore[attr-defined]
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    header = image.header.copy()
    header.set_data_dtype(np.uint8)  # type: ignore[attr-defined]
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    nib.save(nib.Nifti1Image(marked, image.affine, header), temporary)  # type: ignore[attr-defined]
    os.replace(temporary, path)
