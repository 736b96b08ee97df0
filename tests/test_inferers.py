"""The sliding window over both tasks."""

from __future__ import annotations

import torch

from dbisl.inferers import DualTaskInferer
from dbisl.networks import DualTaskVNet, VNet


def make_inferer(size: int = 16, **options: object) -> DualTaskInferer:
    return DualTaskInferer(roi_size=(size,) * 3, sw_batch_size=2, overlap=0.5, mode="gaussian", **options)


def test_one_window_is_the_networks_own_answer() -> None:
    torch.manual_seed(0)
    network = DualTaskVNet(out_channels=3, features=4, levels=3).eval()
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        logits, sdm = network(image)
        answer = make_inferer()(image, network)
    torch.testing.assert_close(answer, torch.cat([logits.softmax(1), sdm], dim=1))


def test_any_size_and_both_tasks_are_stitched() -> None:
    def network(windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Voxelwise, so that the stitched answer is known whatever the windows."""
        return torch.cat([-windows, windows], dim=1), torch.cat([-windows, windows], dim=1).tanh()

    for size in ((9, 30, 21), (40, 12, 17)):
        image = torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(1))
        answer = make_inferer()(image, network)
        logits = torch.cat([-image, image], dim=1)
        torch.testing.assert_close(answer, torch.cat([logits.softmax(1), logits.tanh()], dim=1))


def test_single_task_network_answers_with_probabilities_alone() -> None:
    torch.manual_seed(0)
    network = VNet(out_channels=3, features=4, levels=3).eval()
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(make_inferer()(image, network), network(image).softmax(1))


def test_bfloat16_on_the_cpu_is_close_and_answers_in_float32() -> None:
    torch.manual_seed(0)
    network = DualTaskVNet(out_channels=2, features=4, levels=3).eval()
    image = torch.randn(1, 1, 16, 24, 16)
    with torch.no_grad():
        exact, fast = make_inferer()(image, network), make_inferer(amp=True)(image, network)
    assert fast.dtype == torch.float32
    assert 0 < (exact - fast).abs().max() < 0.05
