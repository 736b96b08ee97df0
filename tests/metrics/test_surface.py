"""The metrics of one mask against MedPy and against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from medpy.metric import binary
from monai.data.meta_tensor import MetaTensor
from scipy.ndimage import gaussian_filter

from dbisl.metrics import surface_metrics

TOLERANCE = 1e-4
SPACING = (1.0, 1.0, 2.0)
EMPTY = np.zeros((4, 5, 6), dtype=bool)
FULL = np.ones((4, 5, 6), dtype=bool)


def blob(shape: tuple[int, ...], seed: int, fraction: float = 0.3) -> np.ndarray:
    """Return a random mask of several rounded parts that fills a fraction of the image and touches its border."""
    field = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 2.0)
    return field > np.quantile(field, 1 - fraction)


def filled(shape: tuple[int, ...], *regions: tuple[slice, ...] | tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    for region in regions:
        mask[region] = True
    return mask


def assert_equals_medpy(prediction: np.ndarray, reference: np.ndarray, spacing: tuple[float, ...]) -> None:
    ours = surface_metrics(prediction, reference, spacing)
    theirs = {
        "dice": binary.dc(prediction, reference),
        "jaccard": binary.jc(prediction, reference),
        "hd95_mm": binary.hd95(prediction, reference, voxelspacing=spacing),
        "assd_mm": binary.assd(prediction, reference, voxelspacing=spacing),
        "hd95_voxel": binary.hd95(prediction, reference),
        "assd_voxel": binary.assd(prediction, reference),
    }
    assert ours.outcome == ("found" if theirs["dice"] > 0 else "false_negative")
    assert {name: getattr(ours, name) for name in theirs} == pytest.approx(theirs, rel=0, abs=TOLERANCE)


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [
        ((40, 33), (1.0, 1.0)),
        ((17, 64), (0.7, 3.0)),
        ((24, 24, 24), (1.0, 1.0, 1.0)),
        ((35, 50, 35), (1.0, 1.0, 1.0)),
        ((48, 40, 20), (0.625, 0.625, 1.25)),
        ((30, 22, 9), (0.82, 0.82, 5.0)),
    ],
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_random_blobs_equal_medpy(shape: tuple[int, ...], spacing: tuple[float, ...], seed: int) -> None:
    assert_equals_medpy(blob(shape, seed), blob(shape, seed + 100, fraction=0.1), spacing)


@pytest.mark.parametrize(
    ("prediction", "reference"),
    [
        pytest.param(filled((9, 8, 7), (3, 3, 3)), filled((9, 8, 7), (3, 3, 3)), id="one voxel, found"),
        pytest.param(filled((9, 8, 7), (0, 0, 0)), filled((9, 8, 7), (8, 7, 6)), id="one voxel, corner to corner"),
        pytest.param(np.ones((6, 7, 8), dtype=bool), np.ones((6, 7, 8), dtype=bool), id="the whole image"),
        pytest.param(np.ones((6, 7, 8), dtype=bool), filled((6, 7, 8), (2, 2, 2)), id="the whole image and a voxel"),
        pytest.param(filled((20, 20, 20), np.s_[:5, :9, :]), filled((20, 20, 20), np.s_[:7, 4:, :3]), id="border"),
        pytest.param(filled((40, 9, 9), np.s_[1:4, 2:6]), filled((40, 9, 9), np.s_[30:36, 2:6]), id="disjoint"),
        pytest.param(
            filled((30, 30, 5), np.s_[4:9, 4:9, 1:3], (29, 29, 4)),
            filled((30, 30, 5), np.s_[5:9, 4:9, 2:4]),
            id="stray voxel",
        ),
        pytest.param(filled((1, 12, 12), np.s_[:, 2:6, 2:6]), filled((1, 12, 12), np.s_[:, 3:9, 2:6]), id="one slice"),
    ],
)
def test_special_masks_equal_medpy(prediction: np.ndarray, reference: np.ndarray) -> None:
    assert_equals_medpy(prediction, reference, (0.5, 1.0, 2.5))
    assert_equals_medpy(reference, prediction, (0.5, 1.0, 2.5))


def test_margin_around_the_masks_changes_nothing() -> None:
    prediction, reference = blob((20, 18, 16), 3), blob((20, 18, 16), 4)
    alone = surface_metrics(prediction, reference, SPACING)
    assert surface_metrics(np.pad(prediction, 25), np.pad(reference, 25), SPACING) == alone


def test_tensors_equal_arrays() -> None:
    prediction, reference = blob((20, 18, 16), 5), blob((20, 18, 16), 6)
    tensors = torch.from_numpy(prediction), MetaTensor(torch.from_numpy(reference))
    assert surface_metrics(*tensors, SPACING) == surface_metrics(prediction, reference, SPACING)


def test_distances_by_hand() -> None:
    cube = filled((8, 8, 8), np.s_[2:5, 2:5, 2:5])
    shifted = filled((8, 8, 8), np.s_[2:5, 2:5, 3:6])
    metrics = surface_metrics(shifted, cube, SPACING)
    assert metrics.dice == pytest.approx(2 / 3)
    assert metrics.jaccard == pytest.approx(1 / 2)
    # The cube has 26 surface voxels. The 9 voxels of one face lie one slice away from the other cube. The middle voxel
    # of the opposite face lies inside the other cube, one voxel from its side.
    # The same holds the other way round.
    assert metrics.assd_voxel == pytest.approx(10 / 26)
    assert metrics.assd_mm == pytest.approx(19 / 26)
    assert metrics.hd95_voxel == pytest.approx(1.0)
    assert metrics.hd95_mm == pytest.approx(2.0)
    assert metrics.reference_ml == pytest.approx(27 * 2 / 1000)


@pytest.mark.parametrize(
    ("prediction", "reference", "outcome", "dice"),
    [
        pytest.param(EMPTY, FULL, "false_negative", 0.0, id="false negative"),
        pytest.param(FULL, EMPTY, "false_positive", 0.0, id="false positive"),
        pytest.param(EMPTY, EMPTY, "absent", math.nan, id="absent"),
    ],
)
def test_outcomes_without_distances(prediction: np.ndarray, reference: np.ndarray, outcome: str, dice: float) -> None:
    metrics = surface_metrics(prediction, reference, SPACING)
    assert metrics.outcome == outcome
    assert [metrics.dice, metrics.jaccard] == pytest.approx([dice, dice], nan_ok=True)
    distances = (metrics.hd95_mm, metrics.assd_mm, metrics.hd95_voxel, metrics.assd_voxel)
    assert all(math.isnan(distance) for distance in distances)
    assert metrics.prediction_ml == pytest.approx(np.count_nonzero(prediction) * 2 / 1000)
    assert metrics.reference_ml == pytest.approx(np.count_nonzero(reference) * 2 / 1000)


def test_a_prediction_elsewhere_is_a_miss_with_distances() -> None:
    elsewhere, reference = filled((4, 5, 6), (0, 0, 0)), filled((4, 5, 6), (3, 0, 0))
    metrics = surface_metrics(elsewhere, reference, (2.0, 1.0, 1.0))
    assert metrics.outcome == "false_negative"
    assert (metrics.dice, metrics.assd_mm, metrics.hd95_voxel) == (0.0, 6.0, 3.0)


def test_average_distance_is_the_same_in_both_directions() -> None:
    reference = filled((30, 9, 9), np.s_[2:5, 2:5, 2:5])
    prediction = reference | filled((30, 9, 9), np.s_[20:23, 2:5, 2:5])  # an island that the reference lacks
    one_way, back = surface_metrics(prediction, reference, SPACING), surface_metrics(reference, prediction, SPACING)
    assert one_way.assd_mm == back.assd_mm > 0


def test_no_volume_in_two_dimensions() -> None:
    assert math.isnan(surface_metrics(blob((9, 9), 0), blob((9, 9), 1), (1.0, 1.0)).reference_ml)


@pytest.mark.parametrize(
    ("shape", "spacing", "message"),
    [
        ((4, 4, 5), SPACING, r"the same shape, got \(4, 4, 5\) and \(4, 4, 4\)"),
        ((4, 4, 4), (1.0, 1.0), "spacing must be 3 positive numbers"),
        ((4, 4, 4), (1.0, 0.0, 1.0), "spacing must be 3 positive numbers"),
    ],
)
def test_masks_that_cannot_be_compared(shape: tuple[int, ...], spacing: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        surface_metrics(np.ones(shape, dtype=bool), np.ones((4, 4, 4), dtype=bool), spacing)
