"""Training on several processes, one a GPU: their start, their shares, and the statistics that they have in common.

``configs/multi_gpu_train.json`` puts these together with PyTorch's DistributedDataParallel; ``torchrun`` starts the
processes. A *rank* is the number of a process.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from dbisl.utils.errors import InputError

TIMEOUT = timedelta(hours=2)
"""How long a process waits for another: NCCL's ten minutes are too short for the check of a large data set."""


def rank_device() -> torch.device:
    """The device of this process: its own GPU of this machine, or the CPU where there is none.

    Raises:
        InputError: when torchrun did not start the process, or started more than there are GPUs.
    """
    _require_torchrun()
    if not torch.cuda.is_available():
        return torch.device("cpu")
    index, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if index >= gpus:
        raise InputError(
            f"torchrun started more than {gpus} processes on a machine of {gpus} GPUs: expected --nproc_per_node of at "
            f"most {gpus}."
        )
    return torch.device("cuda", index)


def _require_torchrun() -> None:
    if "LOCAL_RANK" not in os.environ:
        raise InputError(
            "multi_gpu_train.json is for several processes: start them by `torchrun --nproc_per_node=N -m monai.bundle "
            "run training ...`, N the number of GPUs, or leave the file out."
        )


def start(device: torch.device | str) -> None:
    """Join the process group, over NCCL on GPUs and gloo on CPUs, as torchrun's environment describes it.

    From here on only the first process logs more than warnings. The others go on when it has called
    :func:`checks_passed`: what is wrong with the input is found, and said, once.

    Args:
        device: of this process.

    Raises:
        InputError: when torchrun did not start the process.
    """
    _require_torchrun()
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", timeout=TIMEOUT, device_id=device)
    else:
        dist.init_process_group("gloo", timeout=TIMEOUT)
    if dist.get_rank() > 0:
        for handler in logging.getLogger().handlers:
            handler.setLevel(logging.WARNING)
        try:
            dist.barrier()
        except RuntimeError as error:
            raise SystemExit(f"rank {dist.get_rank()} ends because the first process did before it.") from error


def checks_passed() -> None:
    """Called by the first process when its input can be trained on: lets the others go on. Nothing in the others."""
    if dist.get_rank() == 0:
        dist.barrier()


def share_of_rank(cases: Sequence[Any]) -> Sequence[Any]:
    """The cases that this process validates: every ``world_size``-th.

    All of them where they are fewer than the processes, since none may be without: the metrics are gathered from all.
    Each case then counts as often as any other, so that means over them stay what they are.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    return cases if len(cases) < world_size else cases[rank::world_size]


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


class SyncBatchNorm(_BatchNorm):
    """Batch normalisation with the statistics of all processes' batches, on any device.

    ``torch.nn.SyncBatchNorm`` is faster but refuses tensors on the CPU. The arguments, the state and the running
    statistics are those of ``torch.nn.BatchNorm3d``; in evaluation, and with one process, so is the answer.
    """

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions, got {input.dim()}.")

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """``B x C x *spatial`` to the same shape, type and memory format; ``B`` and the sizes may differ by rank."""
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(input)
        self._check_input_dim(input)
        values = input.to(torch.promote_types(input.dtype, torch.float32))
        dims = [dim for dim in range(values.ndim) if dim != 1]
        channels = (1, -1, *[1] * (values.ndim - 2))
        own_count = values.new_tensor([values.numel() / values.shape[1]])
        total, count = sum_over_ranks(torch.cat([values.sum(dim=dims), own_count])).split([values.shape[1], 1])
        mean = total / count
        centred = values - mean.view(channels)
        variance = sum_over_ranks(centred.square().sum(dim=dims)) / count
        self._track(mean.detach(), variance.detach() * count / (count - 1))
        answer = centred * (variance + self.eps).rsqrt().view(channels)
        if self.affine:
            answer = torch.addcmul(self.bias.view(channels), answer, self.weight.view(channels))
        return answer.to(input.dtype)

    def _track(self, mean: torch.Tensor, unbiased_variance: torch.Tensor) -> None:
        if self.num_batches_tracked is None or self.running_mean is None or self.running_var is None:
            return
        self.num_batches_tracked.add_(1)
        part = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, part)
        self.running_var.lerp_(unbiased_variance, part)


def synchronise_batch_norm(network: nn.Module) -> nn.Module:
    """Let the batch normalisations of a network use the statistics of all processes' batches.

    By ``torch.nn.SyncBatchNorm`` on a GPU, :class:`SyncBatchNorm` on the CPU. Other layers stay, and so do the names
    and values of the state.

    Args:
        network: on the device where it is to be trained; changed in place.

    Returns:
        The network.
    """
    if next(network.parameters()).is_cuda:
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return converted
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm):
                setattr(module, name, _synchronised(child))
    return network


def _synchronised(norm: _BatchNorm) -> SyncBatchNorm:
    layer = SyncBatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    layer.load_state_dict(norm.state_dict(keep_vars=True), assign=True)  # the tensors themselves, where they are
    return layer.train(norm.training)
