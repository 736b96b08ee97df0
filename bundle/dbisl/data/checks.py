"""Check every scan and label before training, and list all problems in one error."""

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

from dbisl.data.mistakes import class_name_problems, growth_warning, missing_class_warnings, scaled_label_hint
from dbisl.data.nifti import READERS, image_problem, read_nifti, shape_text, spatial_shape
from dbisl.data.partial_labels import IGNORE_LABEL
from dbisl.data.splits import overlap_problems
from dbisl.utils.errors import raise_if_any

logger = logging.getLogger(__name__)

MAX_PATCH_RATIO = 4
"""How many times longer than the largest scan a patch may be. Smaller scans are padded, but much more is a mistake."""


@dataclass(frozen=True)
class _Report:
    """What the reading of one case found.

    Attributes:
        problems: sentences.
        size: voxels of the scan along R, A, S after resampling; None for a case with problems.
        spacing: size of its own voxels along R, A, S, in millimetres; None for a case with problems.
        classes: values of its label.
    """

    problems: list[str]
    size: np.ndarray | None = None
    spacing: np.ndarray | None = None
    classes: frozenset[int] = frozenset()


def check_cases(
    *,
    labeled: Sequence[Mapping[str, Any]],
    unlabeled: Sequence[Mapping[str, Any]],
    validation: Sequence[Mapping[str, Any]],
    in_channels: int,
    class_names: Sequence[str],
    patch_size: Sequence[int],
    patch_divisor: Sequence[int],
    spacing: Sequence[float] | None,
    bfloat16_on_cpu: bool = False,
    labels_required: bool = True,
) -> None:
    """Read every file once, header and voxels, and raise one error that lists the problems.

    A case is a mapping with the keys ``"image"`` and, for labeled and validation cases, ``"label"``; other keys are
    ignored. The ``"label"`` of an unlabeled case is never opened.

    Args:
        labeled: training cases with labels; at least one if ``labels_required``.
        unlabeled: training cases without labels; may be empty.
        validation: cases with labels; may be empty.
        in_channels: number of channels of an image. With 1, files are ``W x H x D`` (or ``W x H x D x 1``); with more,
            the channels are the files' last axis.
        class_names: names of the classes, background first. Labels hold whole numbers below their number, and 255 where
            nothing was annotated.
        patch_size: voxels of a training patch on each axis. Its length is the number of spatial axes, 2 or 3.
        patch_divisor: number by which the network needs the patch size to be divisible, on each axis.
        spacing: size of a voxel after resampling, in millimetres along R, A, S; None keeps the spacing of each scan.
        bfloat16_on_cpu: whether the network trains with bfloat16 autocast on the CPU, which excludes some patches.
        labels_required: whether having no labeled cases is a problem.

    Raises:
        InputError: if there is a problem. It has one sentence per problem, one per line, in the order of the lists. At
            most ten are listed and the others are counted.
    """
    start = time.perf_counter()
    options = class_name_problems(class_names) + option_problems(patch_size, patch_divisor, spacing)
    if bfloat16_on_cpu and len(patch_size) == 3 and patch_size[0] == 2 * patch_divisor[0]:
        # PyTorch 2.13: the gradient of a 3x3x3 convolution over 2 x ... voxels reads uninitialised memory.
        options.append(
            f"patch_size is {patch_size[0]} on axis 0, so the network's deepest feature map has 2 voxels there, and "
            "bfloat16 gradients of such maps are wrong on a CPU: "
            f"expected at least {3 * patch_divisor[0]}, or --amp False."
        )
    raise_if_any(options + _list_problems(labeled, unlabeled, validation, labels_required))

    to_read = {str(case["image"]) for case in labeled}
    cases: list[tuple[Any, Any]] = [(case["image"], case["label"]) for case in labeled]
    cases += [(case["image"], None) for case in unlabeled if str(case["image"]) not in to_read]
    training = len(cases)
    cases += [(case["image"], case["label"]) for case in validation]

    def check(case: tuple[Any, Any]) -> _Report:
        return _check_case(*case, len(patch_size), in_channels, len(class_names), spacing)

    with ThreadPoolExecutor(READERS) as pool:
        reports = list(pool.map(check, cases))
    sizes = [report.size for report in reports[:training] if report.size is not None]
    raise_if_any([problem for report in reports for problem in report.problems] + _patch_problems(patch_size, sizes))
    spacings = [report.spacing for report in reports[:training] if report.spacing is not None]
    present = {index for report in reports[: len(labeled)] for index in report.classes}
    warnings = missing_class_warnings(class_names, present) if labeled else []
    for warning in [*warnings, growth_warning(spacing, spacings)]:
        if warning:
            logger.warning(warning)
    logger.info(
        f"Checked {len(labeled)} labeled, {len(unlabeled)} unlabeled and {len(validation)} validation cases in "
        f"{time.perf_counter() - start:.1f} s."
    )


def option_problems(
    patch_size: Sequence[int], patch_divisor: Sequence[int], spacing: Sequence[float] | None
) -> list[str]:
    """Return a sentence for each patch size that the network cannot take, and for a spacing that does not fit.

    The arguments are those of :func:`check_cases`.
    """
    if not _are_numbers(patch_size, int) or len(patch_size) not in (2, 3):
        return [f"patch_size is {patch_size!r}: expected a list of 2 or 3 whole numbers."]
    if len(patch_size) != len(patch_divisor):
        return [f"patch_size is {list(patch_size)}: expected {len(patch_divisor)} axes, as the network has."]
    problems = []
    for axis, (size, divisor) in enumerate(zip(patch_size, patch_divisor, strict=True)):
        if size < 1 or size % divisor:
            below, above = (max(size // divisor + more, 1) * divisor for more in (0, 1))
            nearest = f"{below} or {above}" if below < above else f"{above}"
            problems.append(
                f"patch_size is {list(patch_size)}: expected a multiple of {divisor} on axis {axis}, not {size}; "
                f"nearest is {nearest}."
            )
    if list(patch_size) == list(patch_divisor):
        problems.append(
            f"patch_size is {list(patch_size)}: expected more than {list(patch_divisor)} on at least one axis, because "
            "the network's deepest feature map would be a single voxel."
        )
    if spacing is not None and not (
        _are_numbers(spacing, int, float)
        and len(spacing) == len(patch_size)
        and all(0 < size < np.inf for size in spacing)
    ):
        problems.append(
            f"spacing is {spacing!r}: expected {len(patch_size)} positive numbers, one for each axis of patch_size."
        )
    return problems


def _are_numbers(values: Any, *types: type) -> bool:
    """Return whether the values are a list of numbers of some types. ``bool`` does not count as ``int``."""
    return isinstance(values, (list, tuple)) and all(
        isinstance(value, types) and not isinstance(value, bool) for value in values
    )


def _list_problems(
    labeled: Sequence[Mapping[str, Any]],
    unlabeled: Sequence[Mapping[str, Any]],
    validation: Sequence[Mapping[str, Any]],
    labels_required: bool,
) -> list[str]:
    """Return the problems that show without opening a file: missing paths, and scans in two lists."""
    problems = []
    if labels_required and not labeled:
        problems.append(
            "There are no labeled cases: expected at least one image with a label (for evaluation, in val.list)."
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
    return problems or overlap_problems([*labeled, *unlabeled], validation)


def _check_case(
    image_path: Any, label_path: Any, dims: int, in_channels: int, num_classes: int, spacing: Sequence[float] | None
) -> _Report:
    """Read the files of one case. ``label_path`` is None for an unlabeled case."""
    image, voxels, problem = read_nifti(image_path)
    problems = [problem]
    classes: frozenset[int] = frozenset()
    shape = None
    if image is not None:
        problems.append(image_problem(image_path, image, voxels, dims, in_channels))
        shape = spatial_shape(image.shape, dims, in_channels)
    del voxels  # frees a whole volume before the label is read
    if label_path is not None:
        label, values, problem = read_nifti(label_path)
        problems.append(problem)
        if label is not None:
            problems.append(_label_problem(label_path, values, num_classes))
            classes = frozenset(np.unique(values).astype(int).tolist()) if not problems[-1] else classes
        if label is not None and image is not None and shape is not None:
            problems.append(_pair_problem(image_path, image, shape, label_path, label, dims))
    problems = [problem for problem in problems if problem]
    if problems or image is None or shape is None:
        return _Report(problems)
    order = np.argsort(nib.io_orientation(image.affine)[: len(shape), 0])
    own = nib.affines.voxel_sizes(image.affine)[: len(shape)][order]
    size = np.asarray(shape, dtype=float)[order]
    return _Report([], size if spacing is None else size * own / np.asarray(spacing, dtype=float), own, classes)


def _label_problem(path: Any, values: np.ndarray, num_classes: int) -> str:
    """Return the sentence that says why the values of a label cannot be used, or an empty string."""
    if values.dtype.kind not in "iuf":
        return f"{path} holds voxels of type {values.dtype}: expected whole numbers."
    wrong = ((values < 0) | (values >= num_classes)) & (values != IGNORE_LABEL)
    if values.dtype.kind == "f":
        wrong |= ~(np.floor(values) == values)  # written with ~ because NaN is unequal to everything
    if wrong.any():
        found = np.unique(values[wrong])
        listed = ", ".join(f"{value:g}" for value in found[:5]) + (", ..." if len(found) > 5 else "")
        return (
            f"{path} has label values {listed}: expected whole numbers from 0 to {num_classes - 1} (class_names has "
            f"{num_classes} names), or {IGNORE_LABEL} where nothing was annotated."
            + scaled_label_hint(np.unique(values), num_classes)
        )
    # Many programs write a mask as 0 and 255. It must not pass for a scan without any structure.
    if (values == IGNORE_LABEL).any() and not ((values > 0) & (values != IGNORE_LABEL)).any():
        return (
            f"{path} has only the label values 0 and {IGNORE_LABEL}, and {IGNORE_LABEL} marks what was not annotated: "
            "expected some voxels of a structure (1 or more)."
        )
    return ""


def _pair_problem(
    image_path: Any, image: SpatialImage, shape: tuple[int, ...], label_path: Any, label: SpatialImage, dims: int
) -> str:
    """Return the sentence that says why a label does not fit its image, or an empty string."""
    if spatial_shape(label.shape, dims, 1) != shape:
        return (
            f"{label_path} has the shape {shape_text(label.shape)}: expected {shape_text(shape)}, as {image_path} has."
        )
    if not np.allclose(image.affine, label.affine, atol=1e-3):
        found, expected = label.affine[:3].round(3).tolist(), image.affine[:3].round(3).tolist()
        return f"{label_path} has the affine {found}: expected {expected}, as {image_path} has."
    return ""


def _patch_problems(patch_size: Sequence[int], sizes: Sequence[np.ndarray]) -> list[str]:
    """Return a sentence for each axis on which the patch is far longer than every training scan.

    Args:
        patch_size: voxels of a patch on each axis.
        sizes: voxels of each training scan along the same axes.
    """
    if not sizes:
        return []
    return [
        f"patch_size is {patch} on axis {axis}, but the largest training scan has {largest:.0f} voxels there at the "
        f"training spacing: expected at most {MAX_PATCH_RATIO} times that."
        for axis, (patch, largest) in enumerate(zip(patch_size, np.max(sizes, axis=0), strict=True))
        if patch > MAX_PATCH_RATIO * largest
    ]
