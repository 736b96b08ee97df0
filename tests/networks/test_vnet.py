"""The networks: sizes, shapes, ranges, errors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from monai.networks.nets import SegResNet

from dbisl.networks import DualTaskSegResNet, DualTaskVNet, InstanceNorm


def parameters(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_parameter_counts_are_those_of_the_literature(capsys: pytest.CaptureFixture[str]) -> None:
    dual, single = parameters(DualTaskVNet()), parameters(DualTaskVNet(regression=False))
    with capsys.disabled():
        print(f"\n  DualTaskVNet {dual / 1e6:.2f} M parameters, of a single task {single / 1e6:.2f} M")
    assert single == pytest.approx(9.4e6, rel=0.02)
    assert dual == pytest.approx(12e6, rel=0.05)


@pytest.mark.parametrize(("spatial_dims", "size"), [(2, (32, 16)), (3, (16, 32, 16))])
def test_both_answers_have_the_size_of_the_image(spatial_dims: int, size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    network = DualTaskVNet(spatial_dims=spatial_dims, in_channels=2, out_channels=4, features=4, dropout=0.5)
    logits, sdm = network(torch.randn(2, 2, *size))
    assert logits.shape == sdm.shape == (2, 4, *size)
    assert sdm.abs().max() <= 1
    single = DualTaskVNet(spatial_dims=spatial_dims, in_channels=2, out_channels=4, features=4, regression=False)
    assert single(torch.randn(2, 2, *size)).shape == (2, 4, *size)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize(("size", "last"), [((6, 10), torch.channels_last), ((6, 10, 4), torch.channels_last_3d)])
def test_instance_normalisation_is_pytorchs_in_the_format_of_its_input(
    size: tuple[int, ...], last: torch.memory_format, dtype: torch.dtype, error: float
) -> None:
    torch.manual_seed(0)
    maps = (3 + 2 * torch.randn(3, 4, *size)).to(dtype, memory_format=last).requires_grad_()
    normalised = InstanceNorm()(maps)
    assert normalised.dtype == dtype and normalised.is_contiguous(memory_format=last)
    expected = torch.nn.functional.instance_norm(maps.double())
    torch.testing.assert_close(normalised.double(), expected, atol=error, rtol=0)
    direction = torch.randn(3, 4, *size).to(dtype)
    (ours,) = torch.autograd.grad((normalised * direction).sum(), maps)
    (theirs,) = torch.autograd.grad((expected * direction).sum(), maps)
    assert ours.is_contiguous(memory_format=last)
    torch.testing.assert_close(ours, theirs, atol=error, rtol=0)
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        InstanceNorm()(torch.ones(2, 4, *(1 for _ in size)).to(memory_format=last))


@pytest.mark.parametrize("amp", [False, True])
def test_channels_stay_last_throughout_the_network(amp: bool) -> None:
    network = DualTaskVNet(features=4, levels=3).to(memory_format=torch.channels_last_3d)
    formats: list[bool] = []

    def note(layer: torch.nn.Module, inputs: tuple[torch.Tensor], answer: torch.Tensor) -> None:
        formats.append(answer.is_contiguous(memory_format=torch.channels_last_3d) and not answer.is_contiguous())

    for layer in network.modules():
        if isinstance(layer, InstanceNorm):
            layer.register_forward_hook(note)
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        network(torch.randn(2, 1, 8, 16, 8))
    assert len(formats) > 10 and all(formats)


def make_vnet() -> DualTaskVNet:
    return DualTaskVNet(features=4, levels=3)


def make_segresnet() -> DualTaskSegResNet:
    return DualTaskSegResNet(init_filters=8, blocks_down=(1, 1, 1), blocks_up=(1, 1))


@pytest.mark.parametrize("make", [make_vnet, make_segresnet])
def test_each_task_has_its_own_decoder_and_both_train_the_encoder(make: Callable[[], torch.nn.Module]) -> None:
    torch.manual_seed(0)
    network = make()
    for task, other in ((0, network.regression), (1, network.segmentation)):
        network.zero_grad(set_to_none=True)
        network(torch.randn(1, 1, 8, 8, 8))[task].sum().backward()
        assert all(parameter.grad is None for parameter in other.parameters())
        assert any(parameter.grad.abs().sum() > 0 for parameter in network.encoder.parameters())


@pytest.mark.parametrize(
    ("network", "multiple"),
    [(DualTaskVNet(features=4, levels=3), 4), (DualTaskVNet(features=4), 16), (make_segresnet(), 4)],
)
def test_a_size_that_the_strides_do_not_divide_is_named_with_the_multiple(
    network: DualTaskVNet | DualTaskSegResNet, multiple: int
) -> None:
    assert network.divisor == multiple
    with pytest.raises(ValueError, match=rf"multiple of {multiple}.*\[16, 30, 16\]"):
        network(torch.zeros(1, 1, 16, 30, 16))


def test_levels_out_of_range() -> None:
    with pytest.raises(ValueError, match="between 2 and 5, got 6"):
        DualTaskVNet(levels=6)


def test_segresnet_answers_like_the_vnet_and_like_monais_own() -> None:
    torch.manual_seed(0)
    network = make_segresnet().eval()
    assert network.divisor == 4
    image = torch.randn(2, 1, 8, 16, 12)
    logits, sdm = network(image)
    assert logits.shape == sdm.shape == (2, 2, 8, 16, 12)
    assert sdm.abs().max() <= 1
    single = SegResNet(init_filters=8, blocks_down=(1, 1, 1), blocks_up=(1, 1)).eval()
    weights = {**network.encoder.state_dict(), **network.segmentation.state_dict()}
    single.load_state_dict(weights)
    torch.testing.assert_close(single(image), logits)


@pytest.mark.parametrize("make", [make_vnet, make_segresnet])
def test_scripted_network_agrees(make: Callable[[], torch.nn.Module]) -> None:
    torch.manual_seed(0)
    network = make().eval()
    image = torch.randn(1, 1, 8, 16, 8)
    for scripted, eager in zip(torch.jit.script(network)(image), network(image), strict=True):
        torch.testing.assert_close(scripted, eager)


@pytest.mark.parametrize("regression", [True, False])
@pytest.mark.parametrize("kind", [DualTaskVNet, DualTaskSegResNet])
def test_fused_network_is_one_tensor_of_the_same_weights(kind: type[torch.nn.Module], regression: bool) -> None:
    small = {"init_filters": 8, "blocks_down": (1, 1, 1), "blocks_up": (1, 1), "out_channels": 3}
    options = small if kind is DualTaskSegResNet else {"features": 4, "levels": 3, "out_channels": 3}
    options = {**options, "regression": regression}
    torch.manual_seed(0)
    network, fused = kind(**options).eval(), kind(**options, fused_slope=7.0).eval()
    fused.load_state_dict(network.state_dict())
    image = torch.randn(2, 1, 8, 16, 12)
    answer = network(image)
    assert isinstance(answer, torch.Tensor) != regression
    if isinstance(answer, torch.Tensor):
        expected = torch.softmax(answer, dim=1)
    else:
        expected = (torch.softmax(answer[0], dim=1) + torch.softmax(7.0 * answer[1], dim=1)) / 2
    torch.testing.assert_close(fused(image), expected)
    torch.testing.assert_close(torch.jit.script(fused)(image), expected)
