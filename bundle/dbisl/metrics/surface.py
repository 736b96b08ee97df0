"""Overlap, surface distances and volumes of one mask against its reference, defined as in MedPy.

The definitions are MedPy's ``dc``, ``jc``, ``hd95`` and ``assd``. The average distance is the symmetric one: the
semi-supervised literature reports MedPy's ``asd`` as "ASD", which runs from the prediction to the reference only and so
does not see what the prediction lacks.

A surface voxel is a voxel of the mask with a face neighbour outside the mask or beyond the image's border.
MONAI's building blocks find the surfaces and the distances. MONAI's ``HausdorffDistanceMetric`` is not used, because it
takes the larger of two directed percentiles, where MedPy takes one percentile over both directions together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.metrics.utils import get_mask_edges, get_surface_distance
from monai.utils.type_conversion import convert_to_numpy

OUTCOMES = ("found", "false_negative", "false_positive", "absent")
"""What became of a structure.

- ``found``: prediction and reference overlap.
- ``false_negative``: the reference has it, and no voxel of it was predicted as such: a Dice of 0. What was predicted
  elsewhere does not change that.
- ``false_positive``: only the prediction has it.
- ``absent``: neither has it.
"""


@dataclass(frozen=True, kw_only=True)
class MaskMetrics:
    """Agreement of one predicted mask with its reference. A number that is not defined is NaN.

    Attributes:
        outcome: one of ``OUTCOMES``.
        dice, jaccard: overlap, 0 to 1; 0 for a false negative or false positive, NaN for an absent structure.
        hd95_mm, assd_mm: surface distances in millimetres; NaN unless both masks have voxels.
        hd95_voxel, assd_voxel: the same distances in voxels, as if every voxel had the size 1.
        reference_ml, prediction_ml: volumes in millilitres; NaN in two dimensions.
    """

    outcome: str
    dice: float
    jaccard: float
    hd95_mm: float
    assd_mm: float
    hd95_voxel: float
    assd_voxel: float
    reference_ml: float
    prediction_ml: float


def surface_metrics(
    prediction: np.ndarray | torch.Tensor, reference: np.ndarray | torch.Tensor, spacing: Sequence[float]
) -> MaskMetrics:
    """Compare one predicted mask with its reference, as MedPy's ``dc``, ``jc``, ``hd95`` and ``assd`` do.

    Args:
        prediction: boolean mask, ``H x W`` or ``H x W x D``, on any device.
        reference: boolean mask of the same shape, on any device.
        spacing: size of a voxel along each axis, in millimetres.

    Returns:
        The outcome, the overlaps, the distances in millimetres and in voxels, and the volumes.

    Raises:
        ValueError: when the shapes differ, or ``spacing`` is not one positive number per axis.
    """
    prediction, reference = (np.asarray(convert_to_numpy(mask), dtype=bool) for mask in (prediction, reference))
    _check_masks(prediction, reference, spacing)
    dice, jaccard = _overlaps(prediction, reference)
    in_mm = in_voxels = (math.nan, math.nan)
    if prediction.any() and reference.any():
        # This crops to the box around both masks with a margin of 1, which leaves the distances as they are.
        prediction_surface, reference_surface = get_mask_edges(prediction, reference)
        in_mm = _surface_distances(prediction_surface, reference_surface, spacing)
        in_voxels = _surface_distances(prediction_surface, reference_surface, [1.0] * reference.ndim)
    voxel_ml = math.prod(spacing) / 1000 if reference.ndim == 3 else math.nan
    return MaskMetrics(
        outcome=_outcome(prediction, reference),
        dice=dice,
        jaccard=jaccard,
        hd95_mm=in_mm[0],
        assd_mm=in_mm[1],
        hd95_voxel=in_voxels[0],
        assd_voxel=in_voxels[1],
        reference_ml=np.count_nonzero(reference) * voxel_ml,
        prediction_ml=np.count_nonzero(prediction) * voxel_ml,
    )


def _check_masks(prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float]) -> None:
    if prediction.shape != reference.shape:
        raise ValueError(
            f"prediction and reference must have the same shape, got {prediction.shape} and {reference.shape}."
        )
    if len(spacing) != reference.ndim or not all(0 < size < math.inf for size in spacing):
        raise ValueError(f"spacing must be {reference.ndim} positive numbers, got {tuple(spacing)}.")


def _outcome(prediction: np.ndarray, reference: np.ndarray) -> str:
    """Return which of ``OUTCOMES`` two masks show."""
    if reference.any():
        return "found" if (prediction & reference).any() else "false_negative"
    return "false_positive" if prediction.any() else "absent"


def _overlaps(prediction: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Return Dice and Jaccard of two masks of the same shape; NaN when both are empty."""
    intersection = np.count_nonzero(prediction & reference)
    union = np.count_nonzero(prediction | reference)
    if union == 0:
        return math.nan, math.nan
    return 2 * intersection / (union + intersection), intersection / union


def _surface_distances(
    prediction_surface: np.ndarray, reference_surface: np.ndarray, spacing: Sequence[float]
) -> tuple[float, float]:
    """Return 95HD and ASSD of two surfaces of the same shape, in the unit of ``spacing``.

    Both are over the distances from each surface to the other, taken together: 95HD is their 95th percentile, ASSD
    their mean.
    """
    forward = np.asarray(get_surface_distance(prediction_surface, reference_surface, spacing=spacing), np.float64)
    backward = np.asarray(get_surface_distance(reference_surface, prediction_surface, spacing=spacing), np.float64)
    distances = np.concatenate((forward, backward))
    return float(np.percentile(distances, 95)), float(distances.mean())
