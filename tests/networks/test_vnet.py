"""What is special about the V-Net. ``test_dual_task.py`` tests what every backbone must do."""

from __future__ import annotations

import pytest
import torch

from dbisl.networks import DualTaskVNet


def parameters(network: torch.nn.Module) -> int:
    """Count the weights of a network."""
    return sum(parameter.numel() for parameter in network.parameters())


def test_the_number_of_weights_is_the_literatures() -> None:
    assert parameters(DualTaskVNet(dual_task=False)) == pytest.approx(9.4e6, rel=0.02)
    assert parameters(DualTaskVNet()) == pytest.approx(12e6, rel=0.05)


@pytest.mark.parametrize("size", [(32, 16), (16, 32, 16)], ids=["2D", "3D"])
def test_the_five_levels_of_the_literature(size: tuple[int, ...]) -> None:
    network = DualTaskVNet(spatial_dims=len(size), in_channels=2, out_channels=4, features=4)
    output = network(torch.randn(2, 2, *size))
    assert output.logits.shape == output.sdm.shape == (2, 4, *size)


def test_an_image_size_that_five_levels_cannot_halve_is_named() -> None:
    network = DualTaskVNet(features=4)
    assert network.divisor == [16, 16, 16]
    with pytest.raises(ValueError, match=r"multiples of \[16, 16, 16\].*\[16, 30, 16\]"):
        network(torch.zeros(1, 1, 16, 30, 16))


@pytest.mark.parametrize("levels", [1, 6])
def test_levels_out_of_range_are_refused(levels: int) -> None:
    with pytest.raises(ValueError, match=f"between 2 and 5, got {levels}"):
        DualTaskVNet(levels=levels)
