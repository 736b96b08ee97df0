"""Evaluation: Dice, Jaccard, 95 % Hausdorff and average surface distance, one row a case, task and class.

The definitions are those that the semi-supervised literature reports, MedPy's ``dc``, ``jc``, ``hd95`` and ``asd``:
a surface voxel is a voxel of the mask with a neighbour across a face outside of it, and the image's border counts as
outside. MONAI's building blocks find the surfaces and the distances; its ``HausdorffDistanceMetric`` takes the larger
of two percentiles where MedPy takes one percentile of both directions together, so its numbers differ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.metrics.utils import get_mask_edges, get_surface_distance
from monai.utils.type_conversion import convert_to_numpy


@dataclass(frozen=True, kw_only=True)
class MaskMetrics:
    """How well one predicted mask agrees with its reference; NaN where a number is not defined.

    Attributes:
        outcome: one of ``OUTCOMES``.
        dice, jaccard: overlap, 0 to 1; 0 for a missed or an invented structure, NaN for an absent one.
        hd95_mm, asd_mm: surface distances in millimetres; NaN unless the structure was found.
        hd95_voxel, asd_voxel: the same with every voxel of size 1.
        reference_ml, prediction_ml: volumes in millilitres; NaN in two dimensions.
    """

    outcome: str
    dice: float
    jaccard: float
    hd95_mm: float
    asd_mm: float
    hd95_voxel: float
    asd_voxel: float
    reference_ml: float
    prediction_ml: float


def _outcome(prediction: np.ndarray, reference: np.ndarray) -> str:
    if reference.any():
        return "found" if prediction.any() else "missed"
    return "invented" if prediction.any() else "absent"


def _overlaps(prediction: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Dice and Jaccard of two masks of the same shape; NaN when both are empty."""
    intersection = np.count_nonzero(prediction & reference)
    union = np.count_nonzero(prediction | reference)
    if union == 0:
        return math.nan, math.nan
    return 2 * intersection / (union + intersection), intersection / union


def _surface_distances(
    prediction_surface: np.ndarray, reference_surface: np.ndarray, spacing: Sequence[float]
) -> tuple[float, float]:
    """95HD and ASD of two surfaces of the same shape, in the unit of ``spacing``.

    95HD is the 95th percentile of the distances of both directions together; ASD is the mean distance from the
    prediction's surface to the reference's, one direction only.
    """
    forward = np.asarray(get_surface_distance(prediction_surface, reference_surface, spacing=spacing), np.float64)
    backward = np.asarray(get_surface_distance(reference_surface, prediction_surface, spacing=spacing), np.float64)
    return float(np.percentile(np.concatenate((forward, backward)), 95)), float(forward.mean())


def _check_masks(prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float]) -> None:
    if prediction.shape != reference.shape:
        raise ValueError(f"prediction and reference must have one shape, got {prediction.shape} and {reference.shape}.")
    if len(spacing) != reference.ndim or not all(0 < size < math.inf for size in spacing):
        raise ValueError(f"spacing must be {reference.ndim} positive numbers, got {tuple(spacing)}.")


def surface_metrics(
    prediction: np.ndarray | torch.Tensor, reference: np.ndarray | torch.Tensor, spacing: Sequence[float]
) -> MaskMetrics:
    """Compare one predicted mask with its reference, as MedPy's ``dc``, ``jc``, ``hd95`` and ``asd`` do.

    Args:
        prediction: boolean mask, H x W or H x W x D, on any device.
        reference: boolean mask of the same shape.
        spacing: size of a voxel along each axis, in millimetres.

    Returns:
        The metrics in millimetres and in voxels, the volumes, and the outcome.

    Raises:
        ValueError: when the shapes differ, or the spacing is not one positive number an axis.
    """
    prediction, reference = (np.asarray(convert_to_numpy(mask), dtype=bool) for mask in (prediction, reference))
    _check_masks(prediction, reference, spacing)
    outcome = _outcome(prediction, reference)
    dice, jaccard = _overlaps(prediction, reference)
    in_mm = in_voxels = (math.nan, math.nan)
    if outcome == "found":
        # Crops to the box around both masks and a margin of 1; distances between surfaces do not change by it.
        prediction_surface, reference_surface = get_mask_edges(prediction, reference)
        in_mm = _surface_distances(prediction_surface, reference_surface, spacing)
        in_voxels = _surface_distances(prediction_surface, reference_surface, [1.0] * reference.ndim)
    voxel_ml = math.prod(spacing) / 1000 if reference.ndim == 3 else math.nan
    return MaskMetrics(
        outcome=outcome,
        dice=dice,
        jaccard=jaccard,
        hd95_mm=in_mm[0],
        asd_mm=in_mm[1],
        hd95_voxel=in_voxels[0],
        asd_voxel=in_voxels[1],
        reference_ml=np.count_nonzero(reference) * voxel_ml,
        prediction_ml=np.count_nonzero(prediction) * voxel_ml,
    )
