"""An ensemble predicts the mean of its members' probabilities, and one network stays as it is."""

from __future__ import annotations

import copy

import pytest
import torch

from dbisl.bridge import SDMToSegmentation
from dbisl.inferers import DualTaskInferer
from dbisl.networks import DualTaskVNet, EnsembleNetwork, ensemble
from dbisl.transforms import FuseTasksd

SLOPE = 4.0


def make_networks(count: int, fused_output: bool = False, dual_task: bool = True) -> list[DualTaskVNet]:
    """Networks with different weights, in evaluation mode."""
    networks = []
    for seed in range(count):
        torch.manual_seed(seed)
        network = DualTaskVNet(
            spatial_dims=3,
            in_channels=1,
            out_channels=3,
            features=2,
            levels=2,
            dual_task=dual_task,
            fused_output=fused_output,
            sdm_slope=SLOPE,
        )
        networks.append(network.eval())
    return networks


def inferer(fused: bool = False, flips: tuple[int, ...] = ()) -> DualTaskInferer:
    return DualTaskInferer(slope=SLOPE, fused=fused, flips=flips, roi_size=(8, 8, 8), overlap=0.5, mode="gaussian")


@pytest.fixture
def image() -> torch.Tensor:
    return torch.randn(1, 1, 12, 10, 8, generator=torch.Generator().manual_seed(0))


def test_a_single_path_gives_the_network_itself() -> None:
    (network,) = make_networks(1)
    assert ensemble(network, "model.pt") is network


def test_a_list_gives_as_many_networks_with_weights_of_their_own() -> None:
    (network,) = make_networks(1)
    several = ensemble(network, ["a.pt", "b.pt", "c.pt"])
    assert isinstance(several, EnsembleNetwork) and len(several.members) == 3
    assert several.members[0] is network
    pointers = {next(member.parameters()).data_ptr() for member in several.members}
    assert len(pointers) == 3


@torch.no_grad()
def test_both_tasks_are_the_mean_of_the_members_probabilities(image: torch.Tensor) -> None:
    networks = make_networks(3)
    patch = image[..., :8, :8, :8]
    outputs = [network(patch) for network in networks]
    to_segmentation = SDMToSegmentation(SLOPE)
    p = sum(output.logits.softmax(1) for output in outputs) / 3
    p_r = sum(to_segmentation(output.sdm) for output in outputs) / 3
    r = sum(output.sdm for output in outputs) / 3
    prediction = inferer()(patch, EnsembleNetwork(networks))
    torch.testing.assert_close(prediction, torch.cat([p, p_r, r], dim=1))
    maps = FuseTasksd("pred", num_classes=3, maps=True)({"pred": prediction[0]})
    torch.testing.assert_close(maps["pred"], ((p + p_r) / 2)[0])
    torch.testing.assert_close(maps["pred_sdm"], r[0])


@torch.no_grad()
@pytest.mark.parametrize(("fused", "dual_task"), [(True, True), (False, False)])
def test_whole_scans_and_mirrored_views_are_averaged_too(image: torch.Tensor, fused: bool, dual_task: bool) -> None:
    networks = make_networks(2, fused_output=fused, dual_task=dual_task)
    windows = inferer(fused, flips=(0,))
    expected = (windows(image, networks[0]) + windows(image, networks[1])) / 2
    torch.testing.assert_close(windows(image, EnsembleNetwork(networks)), expected)


@torch.no_grad()
def test_equal_members_predict_as_one_network(image: torch.Tensor) -> None:
    (network,) = make_networks(1)
    twice = EnsembleNetwork([network, copy.deepcopy(network)])
    torch.testing.assert_close(inferer()(image, twice), inferer()(image, network))
