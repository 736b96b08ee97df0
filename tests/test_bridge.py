"""The bridge against scipy's exact distance transform, plain loops and finite differences."""

from __future__ import annotations

from collections.abc import Sequence

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt, gaussian_filter

from dbisl.bridge import SDMToSegmentation, SegmentationToSDM, signed_distance_map

BAND = 5.0


def blob(seed: int, size: tuple[int, ...] = (24, 28, 20)) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=size)
    smooth = gaussian_filter(noise, 3, mode="constant")
    return smooth > np.quantile(smooth, 0.8)


def exact(mask: np.ndarray) -> np.ndarray:
    """The definition at 1 mm, by scipy alone: half a voxel inside the last, and outside the first voxel centre."""
    inside, outside = distance_transform_edt(mask), distance_transform_edt(~mask)
    return np.clip(np.where(mask, inside - 0.5, 0.5 - outside), -BAND, BAND) / BAND


def one_hot(labels: np.ndarray, classes: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.from_numpy(labels).long(), classes).movedim(-1, 0)[None].float()


# ---- signed_distance_map ----


@pytest.mark.parametrize("size", [(24, 28, 20), (40, 36)])
def test_exact_map_agrees_with_scipy(size: tuple[int, ...]) -> None:
    mask = blob(1, size)
    np.testing.assert_allclose(signed_distance_map(mask, BAND), exact(mask), atol=1e-6)


def test_exact_map_takes_each_leading_index_alone() -> None:
    masks = np.stack([blob(1), blob(2)])[None]
    maps = signed_distance_map(torch.from_numpy(masks), BAND, (1, 1, 1))
    assert maps.shape == masks.shape and maps.dtype == torch.float32
    for answer, mask in zip(maps[0], masks[0], strict=True):
        np.testing.assert_allclose(answer, exact(mask), atol=1e-6)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 3.0), (0.5, 2.0, 1.0)])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_zero_lies_on_the_faces_for_anisotropic_spacing(spacing: Sequence[float], axis: int) -> None:
    mask = np.zeros((12, 12, 12), bool)
    mask[(slice(None),) * axis + (slice(5, None),)] = True
    sdm = signed_distance_map(mask, 100.0, spacing) * 100
    faces = (np.arange(12) - 4.5) * spacing[axis]
    expected = np.broadcast_to(faces.reshape([-1 if a == axis else 1 for a in range(3)]), mask.shape)
    np.testing.assert_allclose(sdm, expected, atol=1e-4)


def test_exact_map_of_anisotropic_ball_is_the_distance_to_its_surface() -> None:
    spacing, radius = (1.0, 1.0, 3.0), 15.0
    grid = np.stack(np.meshgrid(*[(np.arange(n) - n / 2) * s for n, s in zip((48, 48, 16), spacing, strict=True)]))
    distance = radius - np.sqrt((np.moveaxis(grid, 1, 2) ** 2).sum(axis=0))
    sdm = signed_distance_map(distance > 0, BAND, spacing).numpy() * BAND
    near = np.abs(distance) < 3
    assert np.abs(sdm - distance)[near].mean() < 0.4  # the ball itself is only known to a voxel


def test_absent_and_full_classes() -> None:
    assert (signed_distance_map(np.zeros((4, 5, 6)), BAND) == -1).all()
    assert (signed_distance_map(np.ones((4, 5, 6)), BAND) == 1).all()


def test_a_class_and_its_complement_are_opposite() -> None:
    mask = blob(3)
    np.testing.assert_allclose(
        signed_distance_map(mask, BAND, (1, 2, 3)), -signed_distance_map(~mask, BAND, (1, 2, 3)), atol=1e-6
    )


def test_wrong_band_or_spacing() -> None:
    with pytest.raises(ValueError, match="band must be positive, got 0"):
        signed_distance_map(np.ones((3, 3)), 0)
    with pytest.raises(ValueError, match="spacing must be positive"):
        signed_distance_map(np.ones((3, 3)), 1, (1, -1))


# ---- SDMToSegmentation ----


def test_two_classes_are_the_papers_sigmoid() -> None:
    sdm = torch.linspace(-1, 1, 60).view(1, 1, 3, 4, 5)
    probabilities = SDMToSegmentation(4.0)(torch.cat([-sdm, sdm], dim=1))
    torch.testing.assert_close(probabilities[:, 1:], torch.sigmoid(8 * sdm))
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(1, 3, 4, 5))


# ---- SegmentationToSDM ----


def error_in_band(answer: torch.Tensor, target: np.ndarray) -> float:
    """Mean absolute error in voxels where the exact map is not truncated."""
    in_band = np.abs(target) < 1
    return float(np.abs(answer.numpy() - target)[in_band].mean() * BAND)


@pytest.mark.parametrize("kernel", ["gaussian", "exponential"])
def test_hard_masks_become_their_distance(kernel: str) -> None:
    labels = blob(4).astype(int) + (blob(5) & blob(4))
    target = np.stack([exact(labels == c) for c in range(3)])
    answer = SegmentationToSDM(BAND, kernel=kernel)(one_hot(labels, 3))[0]
    assert error_in_band(answer, target) < 0.25


@pytest.mark.parametrize("kernel", ["gaussian", "exponential"])
@pytest.mark.parametrize("size", [(12, 13, 11), (20, 17)])
def test_convolution_agrees_with_a_plain_sum(kernel: str, size: tuple[int, ...]) -> None:
    """One voxel's kernel sum over every voxel in reach, written out, borders replicated."""
    torch.manual_seed(0)
    probabilities = torch.softmax(torch.randn(1, 2, *size, dtype=torch.float64), dim=1)
    bridge = SegmentationToSDM(2.0, (1.0,) * len(size), kernel=kernel, h=1.0)
    answer = bridge(probabilities)[0, 1]
    for voxel in [(0,) * len(size), tuple(n // 2 for n in size), tuple(n - 1 for n in size)]:
        sums = np.zeros(2)
        for offset in np.ndindex((7,) * len(size)):
            step = np.array(offset) - 3
            other = tuple(np.clip(np.array(voxel) + step, 0, np.array(size) - 1))
            distance = float(np.linalg.norm(step))
            weight = np.exp(-(distance**2) if kernel == "gaussian" else -distance)
            sums += weight * probabilities[(0, slice(None), *other)].numpy()
        log_ratio = np.log(sums[1] / sums[0])
        root = np.sqrt(abs(log_ratio) + 0.7**2) - 0.7
        expected = np.sign(log_ratio) * root if kernel == "gaussian" else log_ratio
        assert float(answer[voxel]) == pytest.approx(np.clip(expected / 2, -1, 1), abs=1e-9)


@pytest.mark.parametrize("kernel", ["gaussian", "exponential"])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.0, 1.0, 3.0), (1.0, 2.0)])
def test_gradients_agree_with_finite_differences(kernel: str, spacing: Sequence[float]) -> None:
    torch.manual_seed(0)
    size = (5, 4, 3)[: len(spacing)]
    logits = torch.randn(1, 3, *size, dtype=torch.float64, requires_grad=True)
    bridge = SegmentationToSDM(3.0, spacing, kernel=kernel)
    assert torch.autograd.gradcheck(lambda x: bridge(torch.softmax(x, dim=1)), logits)


@pytest.mark.parametrize("kernel", ["gaussian", "exponential"])
@pytest.mark.parametrize("sharpness", [1.0, 4.0])
def test_logarithms_give_the_same_map_and_gradient(kernel: str, sharpness: float) -> None:
    torch.manual_seed(0)
    bridge = SegmentationToSDM(3.0, kernel=kernel, sharpness=sharpness)
    log_p = torch.randn(2, 3, 7, 6, 5, dtype=torch.float64).log_softmax(1).requires_grad_()
    from_log, from_p = bridge.from_log(log_p), bridge(log_p.exp())
    torch.testing.assert_close(from_log, from_p)
    weight = torch.randn_like(from_p)
    gradients = [torch.autograd.grad((answer * weight).sum(), log_p)[0] for answer in (from_log, from_p)]
    # Sharpening normalises, so that only differences between the classes' logarithms matter to ``from_log``.
    through_softmax = [gradient - log_p.exp() * gradient.sum(1, keepdim=True) for gradient in gradients]
    torch.testing.assert_close(through_softmax[0], through_softmax[1])


@pytest.mark.parametrize("kernel", ["gaussian", "exponential"])
def test_undecided_voxels_are_on_the_boundary_and_can_move(kernel: str) -> None:
    probabilities = torch.full((1, 2, 8, 8, 8), 0.5, requires_grad=True)
    sdm = SegmentationToSDM(BAND, kernel=kernel)(probabilities)
    torch.testing.assert_close(sdm, torch.zeros_like(sdm))
    sdm[0, 1].sum().backward()
    assert (probabilities.grad[0, 1] > 0).all() and (probabilities.grad[0, 0] < 0).all()


def test_gradients_reach_the_whole_band_and_stay_finite_on_saturated_masks() -> None:
    logits = (40 * (one_hot(blob(6).astype(int), 2) - 0.5)).requires_grad_()
    sdm = SegmentationToSDM(BAND)(torch.softmax(logits, dim=1))
    (sdm - torch.from_numpy(np.stack([exact(~blob(6)), exact(blob(6))]))[None]).abs().sum().backward()
    assert torch.isfinite(logits.grad).all()
    # A signal on a voxel's distance reaches the logits from everywhere inside the band, its edge set aside.
    inner = np.abs(exact(blob(6))) < 0.7
    voxels = np.argwhere(inner)[:: max(int(inner.sum()) // 40, 1)]
    for voxel in voxels:
        logits.grad = None
        SegmentationToSDM(BAND)(torch.softmax(logits, dim=1))[(0, 1, *voxel)].backward()
        assert logits.grad.abs().sum() > 0


def test_borders_are_replicated() -> None:
    """A half space that leaves the volume looks the same at the border as in the middle."""
    labels = np.zeros((24, 9, 9), int)
    labels[12:] = 1
    sdm = SegmentationToSDM(BAND)(one_hot(labels, 2))[0, 1]
    torch.testing.assert_close(sdm, sdm[:, 4:5, 4:5].expand_as(sdm), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_autocast_does_not_reach_the_bridge(dtype: torch.dtype) -> None:
    probabilities = one_hot(blob(7).astype(int), 2)
    bridge, back = SegmentationToSDM(BAND), SDMToSegmentation(10.0)
    expected = bridge(probabilities)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        answer = bridge(probabilities.to(dtype))
        returned = back(answer.to(dtype))
    assert answer.dtype == returned.dtype == torch.float32
    torch.testing.assert_close(answer, expected)


def test_distances_are_physical() -> None:
    probabilities = one_hot(blob(8).astype(int), 2)
    fine, coarse = SegmentationToSDM(2.5, 0.5), SegmentationToSDM(10.0, 2.0)
    torch.testing.assert_close(fine(probabilities), coarse(probabilities))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"band": 0}, "band must be positive, got 0"),
        ({"band": 5, "spacing": (1, 1, 0)}, "spacing must be positive"),
        ({"band": 5, "kernel": "box"}, "'gaussian' or 'exponential', got 'box'"),
        ({"band": 5, "h": 0.01}, "h=0.01 is too small for a band of 5"),
        ({"band": 40, "h": 0.35, "kernel": "exponential"}, "h=0.35 is too small for a band of 40"),
    ],
)
def test_wrong_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SegmentationToSDM(**arguments)


def test_wrong_input_shape() -> None:
    with pytest.raises(ValueError, match="3 spatial axes"):
        SegmentationToSDM(5)(torch.rand(1, 2, 4, 4))
    with pytest.raises(ValueError, match="at least 2 classes"):
        SegmentationToSDM(5)(torch.rand(1, 1, 4, 4, 4))


@pytest.mark.realdata
@pytest.mark.parametrize("dataset", ["hippocampus", "la"])
@pytest.mark.parametrize("anisotropic", [False, True])
def test_real_labels_become_their_distance(shared_data, dataset: str, anisotropic: bool) -> None:
    """The bar: 0.25 voxel of mean absolute error in the band, on ten labels; 0.15 is what is measured and kept."""
    spacing = (1.0, 1.0, 3.0) if anisotropic else (1.0, 1.0, 1.0)
    errors = []
    for path in sorted((shared_data / dataset / "labels").glob("*.nii.gz"))[:10]:
        labels = np.asarray(nib.load(path).dataobj).astype(int)
        corner, end = (f(np.argwhere(labels), axis=0) for f in (np.min, np.max))
        labels = labels[tuple(slice(max(a - 7, 0), b + 8) for a, b in zip(corner, end, strict=True))]
        labels = labels[:, :, ::3] if anisotropic else labels
        classes = 3 if dataset == "hippocampus" else 2
        target = signed_distance_map(np.stack([labels == c for c in range(classes)]), BAND, spacing).numpy()
        errors.append(error_in_band(SegmentationToSDM(BAND, spacing)(one_hot(labels, classes))[0], target))
    assert max(errors) < 0.25
    assert np.mean(errors) < 0.15
