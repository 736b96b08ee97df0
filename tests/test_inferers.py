"""Sliding windows over whole images, for one task and for both."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import sliding_window_inference
from monai.transforms import Compose, Invertd, Spacingd

from dbisl.bridge import DualTaskOutput
from dbisl.inferers import DualTaskInferer, EvenWindowInferer
from dbisl.networks import DualTaskVNet


def make_inferer(size: int = 16, **options: object) -> DualTaskInferer:
    return DualTaskInferer(roi_size=(size,) * 3, sw_batch_size=2, overlap=0.5, mode="gaussian", slope=5.0, **options)


def test_the_prediction_of_one_window_is_the_networks_output() -> None:
    torch.manual_seed(0)
    network = DualTaskVNet(out_channels=3, features=4, levels=3).eval()
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        logits, sdm = network(image)
        prediction = make_inferer()(image, network)
    torch.testing.assert_close(prediction, torch.cat([logits.softmax(1), (5 * sdm).softmax(1), sdm], dim=1))


def test_windows_of_both_tasks_are_stitched_at_any_size() -> None:
    def network(windows: torch.Tensor) -> DualTaskOutput:
        """Work voxel by voxel, so that the prediction does not depend on the windows."""
        logits = torch.cat([-windows, windows], dim=1)
        return DualTaskOutput(logits, logits.tanh())

    for size in ((9, 30, 21), (40, 12, 17)):
        image = torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(1))
        prediction = make_inferer()(image, network)
        logits = torch.cat([-image, image], dim=1)
        sdm = logits.tanh()
        torch.testing.assert_close(prediction, torch.cat([logits.softmax(1), (5 * sdm).softmax(1), sdm], dim=1))


def test_a_network_with_a_single_task_gives_its_probabilities() -> None:
    torch.manual_seed(0)
    network = DualTaskVNet(out_channels=3, features=4, levels=3, dual_task=False).eval()
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(make_inferer()(image, network), network(image).softmax(1))


def test_the_fused_tasks_equal_the_fused_networks_prediction() -> None:
    torch.manual_seed(0)
    network = DualTaskVNet(out_channels=3, features=4, levels=3).eval()
    fused = DualTaskVNet(out_channels=3, features=4, levels=3, fused_output=True, sdm_slope=5.0).eval()
    fused.load_state_dict(network.state_dict())
    image = torch.randn(1, 1, 21, 30, 24)
    with torch.no_grad():
        p, p_r, _ = make_inferer()(image, network).chunk(3, dim=1)
        torch.testing.assert_close(make_inferer(fused=True)(image, fused), (p + p_r) / 2)


def test_bfloat16_on_the_cpu_is_close_and_the_prediction_is_float32() -> None:
    torch.manual_seed(0)
    network = DualTaskVNet(out_channels=2, features=4, levels=3).eval()
    image = torch.randn(1, 1, 16, 24, 16)
    with torch.no_grad():
        exact, fast = make_inferer()(image, network), make_inferer(amp=True)(image, network)
    assert fast.dtype == torch.float32
    assert 0 < (exact - fast).abs().max() < 0.05


def starts(size: tuple[int, ...], window: int, overlap: float) -> list[set[int]]:
    """Return where the windows start along each axis; the image holds its own coordinates."""
    axes = torch.meshgrid(*(torch.arange(voxels, dtype=torch.float32) for voxels in size), indexing="ij")
    seen: list[set[int]] = [set() for _ in size]

    def network(windows: torch.Tensor) -> torch.Tensor:
        for corner in windows[(..., *[0] * len(size))]:
            for axis, start in enumerate(corner.tolist()):
                seen[axis].add(int(start))
        return windows

    inferer = EvenWindowInferer(roi_size=window, sw_batch_size=3, overlap=overlap)
    inferer(torch.stack(axes)[None], network)
    return seen


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.75, 0.95])
@pytest.mark.parametrize("size", [(17, 24, 31), (16, 33, 50), (19, 40, 26)])
def test_windows_are_even_and_have_at_least_the_overlap(size: tuple[int, ...], overlap: float) -> None:
    window = 16
    for voxels, axis in zip(size, starts(size, window, overlap), strict=True):
        places = sorted(axis)
        assert (places[0], places[-1]) == (0, voxels - window)
        steps = [after - before for before, after in pairwise(places)]
        assert all(step <= window * (1 - overlap) or step == 1 for step in steps)
        assert not steps or max(steps) - steps[-1] < len(steps)
        assert len(set(steps[:-1])) <= 1


def test_there_are_as_many_even_windows_as_monais() -> None:
    size = (37, 41)
    image = torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(0))
    for overlap in (0.1, 0.3, 0.5, 0.8):
        windows = {"even": 0, "monai": 0}

        def network(patch: torch.Tensor, name: str) -> torch.Tensor:
            windows[name] += len(patch)  # noqa: B023 - called within this iteration
            return patch

        EvenWindowInferer(roi_size=16, overlap=overlap)(image, network, "even")
        sliding_window_inference(image, 16, 1, network, overlap, name="monai")
        assert windows["even"] == windows["monai"]


def test_equals_monais_where_the_windows_coincide() -> None:
    torch.manual_seed(0)
    network = DualTaskVNet(out_channels=2, features=4, levels=2, dual_task=False).eval()
    image = torch.randn(2, 1, 24, 32, 16)
    with torch.no_grad():
        expected = sliding_window_inference(image, (16,) * 3, 4, lambda x: network(x).softmax(1), 0.5, "gaussian")
        torch.testing.assert_close(make_inferer()(image, network), expected)


def test_equals_a_written_out_loop() -> None:
    """In 2D, with two channels and a batch of two: windows start at 0, 3, 5 of 21 pixels and at 0, 6, 11 of 27."""
    torch.manual_seed(0)
    network = DualTaskVNet(spatial_dims=2, in_channels=2, out_channels=3, features=4, levels=3).eval()
    image = torch.randn(2, 2, 21, 27)
    total, weights = torch.zeros(2, 9, 21, 27), torch.zeros(21, 27)
    bell = torch.exp(-((torch.arange(16) - 7.5) ** 2) / (2 * (0.125 * 16) ** 2))
    weight = torch.outer(bell, bell).clamp_min(1e-3)
    with torch.no_grad():
        for row in (0, 3, 5):
            for column in (0, 6, 11):
                place = (..., slice(row, row + 16), slice(column, column + 16))
                logits, sdm = network(image[place])
                total[place] += weight * torch.cat([logits.softmax(1), (5 * sdm).softmax(1), sdm], dim=1)
                weights[place] += weight
        inferer = DualTaskInferer(roi_size=(16, 16), sw_batch_size=5, overlap=[0.75, 0.6], mode="gaussian", slope=5.0)
        torch.testing.assert_close(inferer(image, network), total / weights)


def test_invertd_takes_the_prediction_back_to_the_scans_grid() -> None:
    torch.manual_seed(0)
    network = DualTaskVNet(out_channels=2, features=4, levels=2).eval()
    preprocessing = Compose([Spacingd(keys="image", pixdim=2.0)])
    scan = preprocessing({"image": MetaTensor(torch.randn(1, 21, 34, 40))})
    with torch.no_grad():
        pred = make_inferer()(scan["image"][None], network)
    invert = Invertd(keys="pred", orig_keys="image", transform=preprocessing)
    assert invert({"image": scan["image"], "pred": pred[0]})["pred"].shape == (6, 21, 34, 40)


def test_an_image_does_not_change_the_inferer() -> None:
    inferer = make_inferer()
    inferer(torch.zeros(1, 1, 16, 21, 30), lambda windows: windows)
    assert (inferer.overlap, inferer.roi_size) == (0.5, (16, 16, 16))


def test_an_exported_network_with_both_outputs_keeps_them() -> None:
    torch.manual_seed(0)
    network = DualTaskVNet(out_channels=3, features=4, levels=3).eval()
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        scripted = make_inferer(fused=True)(image, torch.jit.script(network))
        torch.testing.assert_close(scripted, make_inferer()(image, network))


def test_an_impossible_overlap_is_refused() -> None:
    with pytest.raises(ValueError, match="overlap must be >= 0 and < 1"):
        EvenWindowInferer(roi_size=16, overlap=1.0)(torch.zeros(1, 1, 20, 20), lambda windows: windows)


def test_flips_are_averaged_over_every_combination_of_the_axes() -> None:
    torch.manual_seed(0)
    network = DualTaskVNet(out_channels=3, features=4, levels=3, fused_output=True, sdm_slope=5.0).eval()
    image = torch.randn(1, 1, 16, 16, 16)
    inferer = EvenWindowInferer(roi_size=(16, 16, 16), sw_batch_size=1, overlap=0.5, flips=[0, 2])
    with torch.no_grad():
        prediction = inferer(image, network)
        expected = [network(image.flip(axes)).flip(axes) for axes in ([], [2], [4], [2, 4])]
    torch.testing.assert_close(prediction, torch.stack(expected).mean(dim=0))


@pytest.mark.parametrize("sw_batch_size", [1, 3])
def test_constant_windows_pass_through_the_network_once(sw_batch_size: int) -> None:
    torch.manual_seed(0)
    network = DualTaskVNet(in_channels=2, out_channels=3, features=4, levels=3, fused_output=True, sdm_slope=5.0).eval()
    image = torch.full((1, 2, 64, 32, 32), -1.0)
    image[:, 1] = 0.5
    image[:, :, 48:] = torch.randn(1, 2, 16, 32, 32)
    windows: list[int] = []

    def counted(batch: torch.Tensor) -> torch.Tensor:
        windows.append(len(batch))
        return network(batch)

    options = {"roi_size": (16, 16, 16), "sw_batch_size": sw_batch_size, "overlap": 0.0}
    with torch.no_grad():
        prediction = EvenWindowInferer(**options)(image, counted)
        expected = sliding_window_inference(image, predictor=network, **options)
    torch.testing.assert_close(prediction, expected)
    # 4 of the 16 windows are not constant; one of the others (or their first batch) passes through the network.
    assert 4 + 1 <= sum(windows) <= 4 + sw_batch_size
