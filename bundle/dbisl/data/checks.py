"""Scans on disk -> labeled, unlabeled and validation cases, and the checks that run before any training.

:func:`find_cases` reads a folder or a datalist, :func:`check_cases` reads every file once. Both raise
:class:`InputError` with a sentence that names the file or the key, what was found and what was expected.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.spatialimages import SpatialImage

from dbisl.data.cases import _in_both
from dbisl.data.nifti import READERS, _spatial_shape, image_problems, read_nifti, shape_text
from dbisl.data.partial_labels import IGNORE_LABEL
from dbisl.utils.errors import MAX_REPORTED, InputError

logger = logging.getLogger(__name__)


MAX_PATCH_RATIO = 4
"""Smaller scans are padded to the patch, but a patch longer than this many times the largest scan is a mistake."""


@dataclass(frozen=True)
class _Report:
    """What reading one case gave: sentences, and the scan's size in voxels of ``spacing`` along R, A, S."""

    problems: list[str]
    size: np.ndarray | None = None


def check_cases(
    *,
    labeled: Sequence[Mapping[str, Any]],
    unlabeled: Sequence[Mapping[str, Any]],
    validation: Sequence[Mapping[str, Any]],
    in_channels: int,
    out_channels: int,
    patch_size: Sequence[int],
    patch_divisor: int,
    spacing: Sequence[float] | None,
    bfloat16_on_cpu: bool = False,
    labels_required: bool = True,
) -> None:
    """Read every file once, header and voxels, and raise one error that names the problems.

    Of an entry only ``"image"`` and, for labeled and validation cases, ``"label"`` are used. A ``"label"`` of an
    unlabeled case is never opened.

    Args:
        labeled: training cases with labels, at least one unless labels are not required.
        unlabeled: training cases without labels; may be empty.
        validation: cases with labels; may be empty.
        in_channels: channels of an image: 1 for ``W x H x D`` files (a fourth axis of size 1 is accepted), otherwise
            the size of the files' last axis.
        out_channels: classes with background: labels hold the whole numbers ``0 .. out_channels - 1``, and 255 where
            nothing was annotated.
        patch_size: voxels of a training patch, an axis each; its length is the number of spatial axes.
        patch_divisor: what the network needs every patch size to be a multiple of.
        spacing: millimetres a voxel after resampling, an axis each in R, A, S order; None keeps each scan's own.
        bfloat16_on_cpu: whether the network trains under bfloat16 autocast on the CPU, which rules out some patches.
        labels_required: whether having no labeled cases is a problem.

    Raises:
        InputError: one sentence a problem, one a line, in the order of the lists, at most ten.
    """
    start = time.perf_counter()
    options = option_problems(patch_size, patch_divisor, spacing)
    if bfloat16_on_cpu and len(patch_size) == 3 and patch_size[0] == 2 * patch_divisor:
        # PyTorch 2.13: the gradient of a 3x3x3 convolution over 2 x ... voxels reads memory that nobody wrote.
        options.append(
            f"patch_size is {patch_size[0]} on axis 0, where the network's deepest map then has 2 voxels, and bfloat16 "
            f"gradients of such maps are wrong on a CPU: expected at least {3 * patch_divisor}, or --amp False."
        )
    _raise_if(options + _list_problems(labeled, unlabeled, validation, labels_required))

    read = {str(case["image"]) for case in labeled}
    cases: list[tuple[Any, Any]] = [(case["image"], case["label"]) for case in labeled]
    cases += [(case["image"], None) for case in unlabeled if str(case["image"]) not in read]
    training = len(cases)
    cases += [(case["image"], case["label"]) for case in validation]

    def check(case: tuple[Any, Any]) -> _Report:
        return _check_case(*case, len(patch_size), in_channels, out_channels, spacing)

    with ThreadPoolExecutor(READERS) as pool:
        reports = list(pool.map(check, cases))
    sizes = [report.size for report in reports[:training] if report.size is not None]
    _raise_if([problem for report in reports for problem in report.problems] + _patch_problems(patch_size, sizes))
    logger.info(
        f"Checked {len(labeled)} labeled, {len(unlabeled)} unlabeled and {len(validation)} validation cases in "
        f"{time.perf_counter() - start:.1f} s."
    )


def _raise_if(problems: Sequence[str]) -> None:
    if problems:
        more = len(problems) - MAX_REPORTED
        raise InputError(
            "\n".join([*problems[:MAX_REPORTED], *([f"... and {more} more problems."] if more > 0 else [])])
        )


def option_problems(patch_size: Sequence[int], patch_divisor: int, spacing: Sequence[float] | None) -> list[str]:
    """Sentences about patches that the network cannot take and spacings that are none; as of :func:`check_cases`."""
    if not _are_numbers(patch_size, int) or len(patch_size) not in (2, 3):
        return [f"patch_size is {patch_size!r}: expected a list of 2 or 3 whole numbers."]
    problems = []
    for axis, size in enumerate(patch_size):
        if size < 1 or size % patch_divisor:
            below, above = (max(size // patch_divisor + more, 1) * patch_divisor for more in (0, 1))
            nearest = f"{below} or {above}" if below < above else f"{above}"
            problems.append(
                f"patch_size is {list(patch_size)}: expected a multiple of {patch_divisor} on axis {axis}, not {size}; "
                f"nearest is {nearest}."
            )
    if all(size == patch_divisor for size in patch_size):
        problems.append(
            f"patch_size is {list(patch_size)}: expected more than {patch_divisor} on some axis, for the network's "
            "deepest map would be a single voxel."
        )
    if spacing is not None and not (
        _are_numbers(spacing, int, float)
        and len(spacing) == len(patch_size)
        and all(0 < size < np.inf for size in spacing)
    ):
        problems.append(
            f"spacing is {spacing!r}: expected {len(patch_size)} positive numbers, one an axis of patch_size."
        )
    return problems


def _are_numbers(values: Any, *types: type) -> bool:
    return isinstance(values, (list, tuple)) and all(
        isinstance(one, types) and not isinstance(one, bool) for one in values
    )


def _list_problems(
    labeled: Sequence[Mapping[str, Any]],
    unlabeled: Sequence[Mapping[str, Any]],
    validation: Sequence[Mapping[str, Any]],
    labels_required: bool,
) -> list[str]:
    problems = (
        []
        if labeled or not labels_required
        else ["There are no labeled cases: expected at least one image with a label (for evaluation, in val.list)."]
    )
    for name, cases, keys in (
        ("labeled", labeled, ("image", "label")),
        ("unlabeled", unlabeled, ("image",)),
        ("validation", validation, ("image", "label")),
    ):
        for index, case in enumerate(cases):
            for key in keys:
                if not isinstance(case.get(key), (str, os.PathLike)):
                    problems.append(
                        f"The {name} case {case.get('image', f'number {index + 1}')} has {case.get(key)!r} as its "
                        f"{key}: expected the path of a file."
                    )
    if problems:
        return problems
    return [
        f"{image} is listed for training and for validation: expected in one of them only."
        for image in _in_both([*labeled, *unlabeled], validation)
    ]


def _check_case(
    image_path: Any, label_path: Any, dims: int, in_channels: int, out_channels: int, spacing: Sequence[float] | None
) -> _Report:
    image, voxels, unreadable = read_nifti(image_path)
    problems = [unreadable] if unreadable else []
    shape = None
    if image is not None:
        problems += image_problems(image_path, image, voxels, dims, in_channels)
        shape = _spatial_shape(image.shape, dims, in_channels)
    del voxels  # a whole volume: not needed while the label is read
    if label_path is not None:
        label, values, unreadable = read_nifti(label_path)
        problems += [unreadable] if unreadable else []
        if label is not None:
            problems += _label_problems(label_path, values, out_channels)
        if label is not None and image is not None and shape is not None:
            problems += _pair_problems(image_path, image, shape, label_path, label, dims)
    size = _resampled_size(image, shape, spacing) if image is not None and shape is not None and not problems else None
    return _Report(problems, size)


def _label_problems(path: Any, values: np.ndarray, out_channels: int) -> list[str]:
    if values.dtype.kind not in "iuf":
        return [f"{path} holds voxels of type {values.dtype}: expected whole numbers."]
    wrong = ((values < 0) | (values >= out_channels)) & (values != IGNORE_LABEL)
    if values.dtype.kind == "f":
        wrong |= ~(np.floor(values) == values)  # negated: NaN is unequal to everything
    if not wrong.any():
        # Many programs write a mask as 0 and 255: that must not pass for a scan in which nothing was found.
        if (values == IGNORE_LABEL).any() and not ((values > 0) & (values != IGNORE_LABEL)).any():
            return [
                f"{path} has no label values but 0 and {IGNORE_LABEL}, which stands for what was not annotated: expected "
                "some voxels of a structure (1 or more)."
            ]
        return []
    found = np.unique(values[wrong])
    listed = ", ".join(f"{value:g}" for value in found[:5]) + (", ..." if len(found) > 5 else "")
    return [
        f"{path} has label values {listed}: expected whole numbers from 0 to {out_channels - 1} (out_channels is "
        f"{out_channels}), or {IGNORE_LABEL} for what was not annotated."
    ]


def _pair_problems(
    image_path: Any, image: SpatialImage, shape: tuple[int, ...], label_path: Any, label: SpatialImage, dims: int
) -> list[str]:
    if _spatial_shape(label.shape, dims, 1) != shape:
        return [
            f"{label_path} has the shape {shape_text(label.shape)}: expected {shape_text(shape)}, as {image_path} has."
        ]
    if not np.allclose(image.affine, label.affine, atol=1e-3):
        found, expected = label.affine[:3].round(3).tolist(), image.affine[:3].round(3).tolist()
        return [f"{label_path} has the affine {found}: expected {expected}, as {image_path} has."]
    return []


def _resampled_size(image: SpatialImage, shape: tuple[int, ...], spacing: Sequence[float] | None) -> np.ndarray:
    """Voxels along R, A, S after resampling: the affine says which axis of the file is which."""
    order = np.argsort(nib.io_orientation(image.affine)[: len(shape), 0])
    if spacing is None:
        return np.asarray(shape, dtype=float)[order]
    millimetres = np.asarray(shape) * nib.affines.voxel_sizes(image.affine)[: len(shape)]
    return millimetres[order] / np.asarray(spacing, dtype=float)


def _patch_problems(patch_size: Sequence[int], sizes: Sequence[np.ndarray]) -> list[str]:
    if not sizes:
        return []
    return [
        f"patch_size is {patch} on axis {axis}, but the largest training scan has {largest:.0f} voxels there at the "
        f"training spacing: expected at most {MAX_PATCH_RATIO} times that."
        for axis, (patch, largest) in enumerate(zip(patch_size, np.max(sizes, axis=0), strict=True))
        if patch > MAX_PATCH_RATIO * largest
    ]
