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
    assert network.divisor == [4, 4, 4]
    with pytest.raises(ValueError, match=r"multiples of \[4, 4, 4\].*\[16, 30, 16\]"):
        network(torch.zeros(1, 1, 16, 30, 16))


THICK_SLICES = {"strides": [[2, 2, 1], [2, 2, 2]], "kernel_sizes": [[3, 3, 1], [3, 3, 1], 3]}
"""Strides and kernels of three levels for scans with thick slices."""
SLICE_BY_SLICE = {"strides": [[2, 2, 1], [2, 2, 1]], "kernel_sizes": [[3, 3, 1]] * 3, "norm": "batch"}
"""A network that never mixes the slices of the last axis."""


def test_thick_slices_keep_their_number_where_the_strides_say_so(backbone: str) -> None:
    network = make_network(backbone, **THICK_SLICES)
    assert network.divisor == [4, 4, 2]
    output = network(torch.randn(1, 1, 16, 8, 6))
    assert output.logits.shape == output.sdm.shape == (1, 2, 16, 8, 6)
    with pytest.raises(ValueError, match=r"multiples of \[4, 4, 2\], got \[16, 8, 5\]"):
        network(torch.zeros(1, 1, 16, 8, 5))


def test_kernels_of_one_voxel_keep_slices_apart(backbone: str) -> None:
    network = make_network(backbone, **SLICE_BY_SLICE).eval()
    image = torch.randn(1, 1, 16, 8, 5)
    whole = network(image)
    for index in range(5):
        alone = network(image[..., index : index + 1])
        torch.testing.assert_close(alone.logits, whole.logits[..., index : index + 1])
        torch.testing.assert_close(alone.sdm, whole.sdm[..., index : index + 1])


def test_strides_and_kernels_that_are_the_default_change_nothing(backbone: str) -> None:
    explicit = make_network(backbone, strides=[2, [2, 2, 2]], kernel_sizes=[3, 3, [3, 3, 3]])
    default = make_network(backbone)
    assert list(explicit.state_dict()) == list(default.state_dict())
    assert all(torch.equal(explicit.state_dict()[name], value) for name, value in default.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strides": [2]}, "strides is .*: expected 2 entries, one per level, got 1"),
        ({"strides": [[2, 2], 2]}, "strides is .*: expected one number, or 3 numbers, per level"),
        ({"strides": [2, 0]}, "strides is .*: expected numbers of at least 1"),
        ({"kernel_sizes": [3, 3]}, "kernel_sizes is .*: expected 3 entries"),
        ({"kernel_sizes": [3, 3, [3, 3, 2]]}, "kernel_sizes is .*: expected odd numbers, got 2"),
    ],
)
def test_strides_and_kernels_that_do_not_fit_are_named(backbone: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_network(backbone, **options)


@pytest.mark.parametrize("shape", [{}, THICK_SLICES], ids=["cubic", "thick slices"])
def test_the_scripted_network_agrees(backbone: str, shape: dict[str, Any]) -> None:
    network = make_network(backbone, **shape).eval()
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
