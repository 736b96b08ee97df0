"""Our instance normalisation against PyTorch's, in the memory format of its input."""

from __future__ import annotations

import pytest
import torch

from dbisl.networks import DualTaskVNet, InstanceNorm


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize(
    ("size", "memory_format"), [((6, 10), torch.channels_last), ((6, 10, 4), torch.channels_last_3d)]
)
def test_maps_and_gradients_are_pytorchs_in_the_format_of_the_input(
    size: tuple[int, ...], memory_format: torch.memory_format, dtype: torch.dtype, error: float
) -> None:
    torch.manual_seed(0)
    maps = (3 + 2 * torch.randn(3, 4, *size)).to(dtype, memory_format=memory_format).requires_grad_()
    normalised = InstanceNorm()(maps)
    assert normalised.dtype == dtype and normalised.is_contiguous(memory_format=memory_format)
    expected = torch.nn.functional.instance_norm(maps.double())
    torch.testing.assert_close(normalised.double(), expected, atol=error, rtol=0)
    direction = torch.randn(3, 4, *size).to(dtype)
    (ours,) = torch.autograd.grad((normalised * direction).sum(), maps)
    (theirs,) = torch.autograd.grad((expected * direction).sum(), maps)
    assert ours.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(ours, theirs, atol=error, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (1, 1, 1)])
def test_a_single_voxel_is_refused(size: tuple[int, ...]) -> None:
    memory_format = torch.channels_last if len(size) == 2 else torch.channels_last_3d
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        InstanceNorm()(torch.ones(2, 4, *size).to(memory_format=memory_format))


@pytest.mark.parametrize("amp", [False, True])
def test_channels_stay_last_throughout_the_network(amp: bool) -> None:
    network = DualTaskVNet(features=4, levels=3).to(memory_format=torch.channels_last_3d)
    formats: list[bool] = []

    def note(layer: torch.nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        formats.append(output.is_contiguous(memory_format=torch.channels_last_3d) and not output.is_contiguous())

    for layer in network.modules():
        if isinstance(layer, InstanceNorm):
            layer.register_forward_hook(note)
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        network(torch.randn(2, 1, 8, 16, 8))
    assert len(formats) > 10 and all(formats)
