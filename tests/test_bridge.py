"""The bridge against SciPy's distance transform and divergence, written-out sums and finite differences."""

from __future__ import annotations

from collections.abc import Sequence

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt, gaussian_filter
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy

from dbisl.bridge import (
    DualTaskOutput,
    SDMToSegmentation,
    SegmentationToSDM,
    disagreement,
    fuse_tasks,
    harden,
    normalised_entropy,
    signed_distance_map,
)

BAND = 5.0


def blob(seed: int, size: tuple[int, ...] = (24, 28, 20)) -> np.ndarray:
    """Return a random smooth mask that fills a fifth of the volume."""
    noise = np.random.default_rng(seed).normal(size=size)
    smooth = gaussian_filter(noise, 3, mode="constant")
    return smooth > np.quantile(smooth, 0.8)


def exact(mask: np.ndarray) -> np.ndarray:
    """Return the SDM at 1 mm by SciPy: its zero is half a voxel from the centres on both sides of the boundary."""
    inside, outside = distance_transform_edt(mask), distance_transform_edt(~mask)
    return np.clip(np.where(mask, inside - 0.5, 0.5 - outside), -BAND, BAND) / BAND


def one_hot(labels: np.ndarray, classes: int) -> torch.Tensor:
    """Turn labels, ``*spatial``, into ``1 x K x *spatial``."""
    return torch.nn.functional.one_hot(torch.from_numpy(labels).long(), classes).movedim(-1, 0)[None].float()


# ---- outputs of both tasks ----


def make_probabilities(classes: int, seed: int) -> torch.Tensor:
    """Return probabilities from almost certain to undecided, ``2 x K x 5 x 6 x 4``."""
    generator = torch.Generator().manual_seed(seed)
    scale = 20 * torch.rand(2, 1, 5, 6, 4, generator=generator, dtype=torch.float64)
    return (scale * torch.randn(2, classes, 5, 6, 4, generator=generator, dtype=torch.float64)).softmax(1)


def test_the_parts_of_an_output_have_names() -> None:
    logits, sdm = torch.zeros(1, 2, 4), torch.ones(1, 2, 4)
    single, pair = DualTaskOutput.of(logits), DualTaskOutput.of((logits, sdm))
    assert single.logits is logits and single.sdm is None
    assert pair.logits is logits and pair.sdm is sdm
    assert DualTaskOutput.of(pair) == pair


def test_an_output_passes_through_torchscript() -> None:
    class TwoTasks(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> DualTaskOutput:
            return DualTaskOutput(image, -image)

    output = torch.jit.script(TwoTasks())(torch.ones(2))
    assert DualTaskOutput.of(output).logits.tolist() == [1, 1] and DualTaskOutput.of(output).sdm.tolist() == [-1, -1]


def test_fused_tasks_are_the_mean_of_both() -> None:
    p, p_r = make_probabilities(3, seed=0), make_probabilities(3, seed=1)
    fused = fuse_tasks(p, p_r)
    torch.testing.assert_close(fused, torch.stack([p, p_r]).mean(dim=0))
    torch.testing.assert_close(fused.sum(dim=1), torch.ones(2, 5, 6, 4, dtype=torch.float64))


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_entropy_and_disagreement_are_scipys(classes: int) -> None:
    p, p_r = make_probabilities(classes, seed=0), make_probabilities(classes, seed=1)
    expected = entropy(p.numpy(), base=classes, axis=1, keepdims=True)
    np.testing.assert_allclose(normalised_entropy(p), expected, atol=1e-9)
    expected = jensenshannon(p.numpy(), p_r.numpy(), base=classes, axis=1, keepdims=True) ** 2
    np.testing.assert_allclose(disagreement(p, p_r), expected, atol=1e-9)


def test_equal_tasks_agree_and_certain_opposites_disagree() -> None:
    p = torch.eye(2).view(1, 2, 2)
    torch.testing.assert_close(disagreement(p, p), torch.zeros(1, 1, 2))
    torch.testing.assert_close(disagreement(p, 1 - p), torch.ones(1, 1, 2))


def test_entropy_and_hardening() -> None:
    uniform = torch.full((1, 4, 2, 2), 0.25)
    certain = torch.eye(4).view(1, 4, 2, 2)
    torch.testing.assert_close(normalised_entropy(uniform), torch.ones(1, 1, 2, 2))
    torch.testing.assert_close(normalised_entropy(certain), torch.zeros(1, 1, 2, 2))
    torch.testing.assert_close(harden(0.9 * certain + 0.1 * uniform), certain)


# ---- signed_distance_map ----


@pytest.mark.parametrize("size", [(24, 28, 20), (40, 36)])
def test_exact_map_agrees_with_scipy(size: tuple[int, ...]) -> None:
    mask = blob(1, size)
    np.testing.assert_allclose(signed_distance_map(mask, BAND), exact(mask), atol=1e-6)


def test_exact_map_treats_each_leading_index_by_itself() -> None:
    masks = np.stack([blob(1), blob(2)])[None]
    maps = signed_distance_map(torch.from_numpy(masks), BAND, (1, 1, 1))
    assert maps.shape == masks.shape and maps.dtype == torch.float32
    for sdm, mask in zip(maps[0], masks[0], strict=True):
        np.testing.assert_allclose(sdm, exact(mask), atol=1e-6)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 3.0), (0.5, 2.0, 1.0)])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_zero_is_on_the_faces_for_anisotropic_spacing(spacing: Sequence[float], axis: int) -> None:
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
    assert np.abs(sdm - distance)[near].mean() < 0.4  # the mask describes the ball only to a voxel


def test_an_empty_mask_and_one_that_fills_its_volume() -> None:
    assert (signed_distance_map(np.zeros((4, 5, 6)), BAND) == -1).all()
    assert (signed_distance_map(np.ones((4, 5, 6)), BAND) == 1).all()


def test_the_map_of_the_complement_is_the_opposite() -> None:
    mask = blob(3)
    np.testing.assert_allclose(
        signed_distance_map(mask, BAND, (1, 2, 3)), -signed_distance_map(~mask, BAND, (1, 2, 3)), atol=1e-6
    )


def test_a_wrong_band_or_spacing_is_refused() -> None:
    with pytest.raises(ValueError, match="band must be positive, got 0"):
        signed_distance_map(np.ones((3, 3)), 0)
    with pytest.raises(ValueError, match="spacing must be positive"):
        signed_distance_map(np.ones((3, 3)), 1, (1, -1))


# ---- SDMToSegmentation ----


def test_with_two_classes_it_is_the_papers_sigmoid() -> None:
    sdm = torch.linspace(-1, 1, 60).view(1, 1, 3, 4, 5)
    probabilities = SDMToSegmentation(4.0)(torch.cat([-sdm, sdm], dim=1))
    torch.testing.assert_close(probabilities[:, 1:], torch.sigmoid(8 * sdm))
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(1, 3, 4, 5))


# ---- SegmentationToSDM ----


def error_in_band(sdm: torch.Tensor, target: np.ndarray) -> float:
    """Return the mean absolute error, in voxels, where the exact map is not truncated."""
    in_band = np.abs(target) < 1
    return float(np.abs(sdm.numpy() - target)[in_band].mean() * BAND)


@pytest.mark.parametrize("kernel", ["gaussian", "exponential"])
def test_hard_masks_become_their_distance_map(kernel: str) -> None:
    labels = blob(4).astype(int) + (blob(5) & blob(4))
    target = np.stack([exact(labels == c) for c in range(3)])
    sdm = SegmentationToSDM(BAND, kernel=kernel)(one_hot(labels, 3))[0]
    assert error_in_band(sdm, target) < 0.25


@pytest.mark.parametrize("kernel", ["gaussian", "exponential"])
@pytest.mark.parametrize("size", [(12, 13, 11), (20, 17)])
def test_convolution_agrees_with_a_written_out_sum(kernel: str, size: tuple[int, ...]) -> None:
    """For some voxels, sum over all voxels that the kernel reaches, with replicated borders."""
    torch.manual_seed(0)
    probabilities = torch.softmax(torch.randn(1, 2, *size, dtype=torch.float64), dim=1)
    bridge = SegmentationToSDM(2.0, (1.0,) * len(size), kernel=kernel, h=1.0)
    sdm = bridge(probabilities)[0, 1]
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
        assert float(sdm[voxel]) == pytest.approx(np.clip(expected / 2, -1, 1), abs=1e-9)


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
def test_log_probabilities_give_the_same_map_and_gradient(kernel: str, sharpness: float) -> None:
    torch.manual_seed(0)
    bridge = SegmentationToSDM(3.0, kernel=kernel, sharpness=sharpness)
    log_p = torch.randn(2, 3, 7, 6, 5, dtype=torch.float64).log_softmax(1).requires_grad_()
    from_log, from_p = bridge.from_log(log_p), bridge(log_p.exp())
    torch.testing.assert_close(from_log, from_p)
    weight = torch.randn_like(from_p)
    gradients = [torch.autograd.grad((sdm * weight).sum(), log_p)[0] for sdm in (from_log, from_p)]
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
    # A gradient of any voxel's distance reaches the logits, except near the edge of the band.
    inner = np.abs(exact(blob(6))) < 0.7
    voxels = np.argwhere(inner)[:: max(int(inner.sum()) // 40, 1)]
    for voxel in voxels:
        logits.grad = None
        SegmentationToSDM(BAND)(torch.softmax(logits, dim=1))[(0, 1, *voxel)].backward()
        assert logits.grad.abs().sum() > 0


def test_borders_are_replicated() -> None:
    """The map of a half space is the same at the border of the volume as in the middle."""
    labels = np.zeros((24, 9, 9), int)
    labels[12:] = 1
    sdm = SegmentationToSDM(BAND)(one_hot(labels, 2))[0, 1]
    torch.testing.assert_close(sdm, sdm[:, 4:5, 4:5].expand_as(sdm), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_bridge_computes_in_float32_under_autocast(dtype: torch.dtype) -> None:
    probabilities = one_hot(blob(7).astype(int), 2)
    bridge, back = SegmentationToSDM(BAND), SDMToSegmentation(10.0)
    expected = bridge(probabilities)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sdm = bridge(probabilities.to(dtype))
        returned = back(sdm.to(dtype))
    assert sdm.dtype == returned.dtype == torch.float32
    torch.testing.assert_close(sdm, expected)


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
def test_wrong_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SegmentationToSDM(**arguments)


def test_a_wrong_input_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="3 spatial axes"):
        SegmentationToSDM(5)(torch.rand(1, 2, 4, 4))
    with pytest.raises(ValueError, match="at least 2 classes"):
        SegmentationToSDM(5)(torch.rand(1, 1, 4, 4, 4))


@pytest.mark.realdata
@pytest.mark.parametrize("dataset", ["hippocampus", "la"])
@pytest.mark.parametrize("anisotropic", [False, True])
def test_real_labels_become_their_distance_map(shared_data, dataset: str, anisotropic: bool) -> None:
    """On ten labels: at most 0.25 voxels of mean absolute error in the band each, and 0.15 on average."""
    spacing = (1.0, 1.0, 3.0) if anisotropic else (1.0, 1.0, 1.0)
    errors = []
    for path in sorted((shared_data / dataset / "labels").glob("*.nii.gz"))[:10]:
        labels = np.asarray(nib.load(path).dataobj).astype(int)
        corner, end = (f(np.argwhere(labels), axis=0) for f in (np.min, np.max))
        labels = labels[tuple(slice(max(a - 7, 0), b + 8) for a, b in zip(corner, end, strict=True))]
        labels = labels[:, :, ::3] if anisotropic else labels
        classes = 3 if dataset == "hippocampus" else 2
        # With two classes, the map of the background is the opposite of the other one, as tested above.
        masks = np.stack([labels == c for c in range(classes) if c > 0 or classes > 2])
        target = signed_distance_map(masks, BAND, spacing).numpy()
        target = np.concatenate([-target, target]) if classes == 2 else target
        errors.append(error_in_band(SegmentationToSDM(BAND, spacing)(one_hot(labels, classes))[0], target))
    assert max(errors) < 0.25
    assert np.mean(errors) < 0.15
