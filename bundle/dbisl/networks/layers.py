"""The V-Net of the semi-supervised literature, with one decoder a task; and another backbone of the same contract.

3x3x3 convolutions, normalisation and ReLU, strided convolutions down, transposed convolutions up, and skips that are
added (Milletari et al. 2016, in the form that UA-MT, DTC and later work share; these normalise over the batch, which
here would mix labeled and unlabeled patches). MONAI's own ``VNet`` is another network: 5x5x5 kernels and five times the
parameters.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional


class _NormaliseEach(torch.autograd.Function):
    """Each item of a batch normalised by itself: what batch normalisation does to a batch of one."""

    @staticmethod
    def forward(ctx: Any, maps: torch.Tensor, eps: float) -> torch.Tensor:
        normalised = torch.empty_like(maps)
        ctx.statistics = []
        for item, to in zip(maps.split(1), normalised.split(1), strict=True):
            result, mean, inverse_deviation = torch.native_batch_norm(item, None, None, None, None, True, 0.0, eps)
            to.copy_(result)
            ctx.statistics.append((mean, inverse_deviation))
        ctx.eps = eps
        ctx.save_for_backward(maps)
        return normalised

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (maps,) = ctx.saved_tensors
        of_maps = torch.empty_like(maps)
        gradients = gradient.contiguous(memory_format=_channels_last(maps)).split(1)
        for item, of_item, to, saved in zip(maps.split(1), gradients, of_maps.split(1), ctx.statistics, strict=True):
            to.copy_(
                torch.ops.aten.native_batch_norm_backward(
                    of_item, item, None, None, None, *saved, True, ctx.eps, [True, False, False]
                )[0]
            )
        return of_maps, None


def _channels_last(maps: torch.Tensor) -> torch.memory_format:
    return torch.channels_last_3d if maps.dim() == 5 else torch.channels_last


def _copied_by_pytorch(maps: torch.Tensor) -> bool:
    """Whether the maps are on a CPU, channels last, and more than the one voxel that PyTorch refuses."""
    return (
        maps.device.type == "cpu"
        and maps.dim() in (4, 5)
        and len(maps) > 0
        and math.prod(maps.shape[2:]) > 1
        and not maps.is_contiguous()
        and maps.is_contiguous(memory_format=_channels_last(maps))
    )


class InstanceNorm(nn.Module):
    """Instance normalisation, without weights, that keeps the channels last where they are.

    PyTorch's own copies such maps into the other format and back, forward and backward: on a CPU that took a fifth of
    a training step. Elsewhere, and when exported, this is PyTorch's.

    Args:
        eps: added to the variance, as in PyTorch's.
    """

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """``B x C x *spatial`` to the same, each channel of each item with mean 0 and variance 1.

        Raises:
            ValueError: when there is one voxel: nothing can be normalised.
        """
        if not torch.jit.is_scripting():  # noqa: SIM102 - a condition of its own: what it guards is not compiled
            if not torch.jit.is_tracing() and _copied_by_pytorch(maps):
                return _NormaliseEach.apply(maps, self.eps)
        return functional.instance_norm(maps, eps=self.eps)
