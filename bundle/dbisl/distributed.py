"""What several training processes need to agree on: statistics that are sums over all their batches."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over the processes of the default group; the tensor itself where there is one process.

    The gradient is the sum of the processes' gradients: where each computes the same loss of the sum and
    DistributedDataParallel then averages the gradients of the weights, that average is the loss's gradient.

    Args:
        tensor: of the same shape in every process, on a device that the group's backend serves.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        total: torch.Tensor = _SumOverRanks.apply(tensor)
        return total
    return tensor
