"""What every backbone must do: shapes and ranges, one decoder for each task, fused output, TorchScript."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dbisl.bridge import DualTaskOutput
from dbisl.networks import DualTaskSegResNet, DualTaskVNet

Network = DualTaskVNet | DualTaskSegResNet

BACKBONES: dict[str, tuple[type[Network], dict[str, Any]]] = {
    "vnet": (DualTaskVNet, {"features": 4, "levels": 3}),
    "segresnet": (DualTaskSegResNet, {"init_filters": 8, "blocks_down": (1, 1, 1), "blocks_up": (1, 1)}),
}
"""Class and options of a small network of each kind, with three levels: spatial sizes must be multiples of 4."""
DROPOUT = {"vnet": {"dropout": 0.5}, "segresnet": {"dropout_prob": 0.5}}


@pytest.fixture(params=list(BACKBONES))
def backbone(request: pytest.FixtureRequest) -> str:
    return request.param


def make_network(backbone: str, **options: Any) -> Network:
    torch.manual_seed(0)
    kind, small = BACKBONES[backbone]
    return kind(**small, **options)


@pytest.mark.parametrize("size", [(32, 16), (8, 16, 12)], ids=["2D", "3D"])
def test_outputs_of_both_tasks_have_the_size_of_the_image(backbone: str, size: tuple[int, ...]) -> None:
    shape = {"spatial_dims": len(size), "in_channels": 2, "out_channels": 4, **DROPOUT.get(backbone, {})}
    image = torch.randn(2, 2, *size)
    output = make_network(backbone, **shape)(image)
    assert isinstance(output, DualTaskOutput)
    assert output.logits.shape == output.sdm.shape == (2, 4, *size)
    assert output.sdm.abs().max() <= 1
    assert make_network(backbone, **shape, dual_task=False)(image).shape == (2, 4, *size)


def test_each_task_has_its_own_decoder_and_both_train_the_encoder(backbone: str) -> None:
    network = make_network(backbone)
    for task, other_decoder in (("logits", network.regression), ("sdm", network.segmentation)):
        network.zero_grad(set_to_none=True)
        getattr(network(torch.randn(1, 1, 8, 8, 8)), task).sum().backward()
        assert all(parameter.grad is None for parameter in other_decoder.parameters())
        assert any(parameter.grad.abs().sum() > 0 for parameter in network.encoder.parameters())


def test_an_image_size_that_the_network_cannot_halve_is_named(backbone: str) -> None:
    network = make_network(backbone)
    assert network.divisor == 4
    with pytest.raises(ValueError, match=r"multiple of 4.*\[16, 30, 16\]"):
        network(torch.zeros(1, 1, 16, 30, 16))


def test_the_scripted_network_agrees(backbone: str) -> None:
    network = make_network(backbone).eval()
    image = torch.randn(1, 1, 8, 16, 8)
    scripted, eager = torch.jit.script(network)(image), network(image)
    assert len(scripted) == len(eager) == 2
    torch.testing.assert_close(scripted.logits, eager.logits)
    torch.testing.assert_close(scripted.sdm, eager.sdm)


@pytest.mark.parametrize("dual_task", [True, False])
def test_fused_output_is_one_tensor_from_the_same_weights(backbone: str, dual_task: bool) -> None:
    options = {"out_channels": 3, "dual_task": dual_task}
    network = make_network(backbone, **options).eval()
    fused = make_network(backbone, **options, fused_output=True, sdm_slope=7.0).eval()
    fused.load_state_dict(network.state_dict())
    image = torch.randn(2, 1, 8, 16, 12)
    output = network(image)
    assert isinstance(output, torch.Tensor) != dual_task
    if dual_task:
        expected = (torch.softmax(output.logits, dim=1) + torch.softmax(7.0 * output.sdm, dim=1)) / 2
    else:
        expected = torch.softmax(output, dim=1)
    torch.testing.assert_close(fused(image), expected)
    torch.testing.assert_close(torch.jit.script(fused)(image), expected)
