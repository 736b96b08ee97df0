"""Sentences for mistakes that newcomers make with their own data."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from dbisl.data.dicom import is_dicom_series
from dbisl.utils.errors import InputError

logger = logging.getLogger(__name__)

MAX_GROWTH = 8
"""How many times more voxels resampling may make of the scans before a warning says so."""
CHANNEL_SUFFIX = re.compile(r"_\d{4}$")
"""End of an image's name in nnU-Net's layout, where its label has the name without it."""


def class_name_problems(class_names: Any) -> list[str]:
    """Return a sentence if the names of the classes cannot be used, or an empty list.

    Args:
        class_names: what the config holds; expected are at least two different names, background first.
    """
    is_list = isinstance(class_names, (list, tuple)) and all(isinstance(name, str) for name in class_names)
    if is_list and len(class_names) >= 2 and len(set(class_names)) == len(class_names):
        return []
    return [f"class_names is {class_names!r}: expected a list of at least two different names, background first."]


def scaled_label_hint(values: np.ndarray, num_classes: int) -> str:
    """Return what to do about label values that are class indices spread over a range, such as 0, 85, 170, 255.

    Args:
        values: different values of a label.
        num_classes: number of classes, background included.

    Returns:
        The end of a sentence, or an empty string if the values are something else.
    """
    above = np.unique(values[values > 0])
    if not 0 < len(above) < num_classes or above[-1] != 255:
        return ""
    step = 255 / len(above)
    if np.abs(above - step * np.arange(1, len(above) + 1)).max() > 1:  # programs round
        return ""
    return f" They look like class indices times {step:g}, as image programs write them: divide by {step:g} and round."


def missing_class_warnings(class_names: Sequence[str], present: Iterable[int]) -> list[str]:
    """Return a sentence for each class that no label holds.

    Args:
        class_names: names of the classes, background first.
        present: class indices that the labels hold.
    """
    missing = sorted(set(range(1, len(class_names))) - set(present))
    return [
        f"No label holds class {index} ({class_names[index]}): expected every class of class_names in at least one "
        "label, since it cannot be learned or measured otherwise."
        for index in missing
    ]


def growth_warning(spacing: Sequence[float] | None, own_spacings: Sequence[np.ndarray]) -> str:
    """Return a sentence if resampling makes far more voxels than the scans have, or an empty string.

    Args:
        spacing: size of a voxel after resampling, in millimetres along R, A, S; None where nothing is resampled.
        own_spacings: size of a voxel of each training scan, in the same order.
    """
    if spacing is None or not own_spacings:
        return ""
    median = np.median(own_spacings, axis=0)
    growth = float(np.prod(median / np.asarray(spacing, dtype=float)))
    if growth <= MAX_GROWTH:
        return ""
    own = ",".join(f"{size:.3g}" for size in median)
    return (
        f"spacing is {list(spacing)}, but the training scans have voxels of {own} mm (median): resampling makes "
        f'{growth:.0f} times as many voxels. Expected a spacing near their own, such as --spacing "[{own}]".'
    )


def no_images_hint(root: Path) -> str:
    """Return what to do about a folder in which no image was found, or an empty string."""
    if root.is_dir() and (root.parent / "labels").is_dir() and root.name == "images":
        return f" Expected the folder above it, {root.parent}."
    # Archives hold patient/study/series; a search of every folder below, such as a home, would not end.
    folders = chain([root], root.glob("*"), root.glob("*/*"), root.glob("*/*/*"))
    series = next(filter(is_dicom_series, folders), None)
    if series is None:
        return ""
    return f" {series} is a DICOM series: expected NIfTI files, as the repository's scripts/prepare.py makes."


def check_label_names(images: Mapping[str, Path], labels: Mapping[str, Path]) -> None:
    """Warn of labels that no image has the name of.

    Args:
        images, labels: files of the two folders by case name.

    Raises:
        InputError: if the images are named as nnU-Net names them, ``a_0000.nii.gz`` for the label ``a.nii.gz``.
    """
    lost = sorted(set(labels) - set(images))
    if not lost:
        return
    sentence = f"{labels[lost[0]]}: {len(lost)} label files have no image of the same name"
    of_nnunet = [name for name in sorted(images) if CHANNEL_SUFFIX.sub("", name) in lost]
    if of_nnunet:
        label = CHANNEL_SUFFIX.sub("", of_nnunet[0])
        raise InputError(
            f"{sentence}: the images are named as nnU-Net names them ({images[of_nnunet[0]].name}); expected "
            f"{labels[label].name} for both, as the repository's scripts/prepare.py writes them."
        )
    logger.warning("%s and are not used.", sentence)
