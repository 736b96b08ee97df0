"""Training with several processes, one per GPU: starting them, sharing cases, and summing over them.

``configs/multi_gpu_train.json`` combines these with PyTorch's DistributedDataParallel; ``torchrun`` starts the
processes. The *rank* of a process is its number, from 0.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import ignite.distributed as idist
import torch
import torch.distributed as dist
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from dbisl.utils.errors import InputError

TIMEOUT = timedelta(hours=2)
"""How long a process waits for another. NCCL's ten minutes are too short for checking a large data set."""


def rank_device() -> torch.device:
    """Return the device of this process: its own GPU of this machine, or the CPU if the machine has no GPU.

    Raises:
        InputError: if torchrun did not start the process, or started more processes than there are GPUs.
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


def start_processes(device: torch.device | str) -> None:
    """Join the process group that torchrun's environment describes: over NCCL on GPUs, over gloo on CPUs.

    After this call only the first process logs messages below warnings. The other processes wait in this call until
    the first process calls :func:`checks_passed`, so that a problem with the input is reported once.

    Args:
        device: the device of this process, from :func:`rank_device`.

    Raises:
        InputError: if torchrun did not start the process.
        SystemExit: in the other processes, if the first process ends before it calls :func:`checks_passed`.
    """
    _require_torchrun()
    device = torch.device(device)
    # `idist.initialize` passes no `device_id` on, without which NCCL guesses the GPU of each process.
    if device.type == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", timeout=TIMEOUT, device_id=device)
    else:
        dist.init_process_group("gloo", timeout=TIMEOUT)
    idist.sync()  # without it, every later call of idist, such as `get_rank`, communicates with the other processes
    if idist.get_rank() > 0:
        for handler in logging.getLogger().handlers:
            handler.setLevel(logging.WARNING)
        try:
            idist.barrier()
        except RuntimeError as error:
            raise SystemExit(f"rank {idist.get_rank()} ends because the first process did before it.") from error


def checks_passed() -> None:
    """Let the other processes continue; the first process calls this when its input has passed all checks.

    Does nothing in the other processes, which wait in :func:`start_processes`, and in a training with one process.
    """
    if idist.get_rank() == 0:
        idist.barrier()


def share_of_rank(cases: Sequence[Any]) -> Sequence[Any]:
    """Return the cases that this process validates: every ``world_size``-th case, starting with case ``rank``.

    With fewer cases than processes, every process validates all cases: the metrics are gathered from all processes,
    so none may be without a case. Either way all cases count equally often, so averages over the cases do not change.

    Args:
        cases: all validation cases, in the same order in every process.
    """
    rank, world_size = idist.get_rank(), idist.get_world_size()
    return cases if len(cases) < world_size else cases[rank::world_size]


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """Sum a tensor over all processes, differentiably; return the tensor itself if there is one process.

    The gradient is the sum of the gradients of all processes. If every process computes the same loss from the sum,
    and DistributedDataParallel averages the gradients of the weights, the average is the gradient of that loss.

    Args:
        tensor: the summand of this process. It has the same shape in every process, and lies on a device that the
            group's backend supports (GPU for NCCL, CPU for gloo).
    """
    # Not idist: in a group that somebody else started, it communicates at each call, and the loss calls this often.
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        total: torch.Tensor = _SumOverRanks.apply(tensor)
        return total
    return tensor


class _SumOverRanks(torch.autograd.Function):
    """Our own, since PyTorch deprecates ``distributed.nn.functional.all_reduce`` in favour of a private function."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        return _all_reduce(tensor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return _all_reduce(gradient)


def _all_reduce(tensor: torch.Tensor) -> torch.Tensor:
    total = tensor.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


def synchronise_batch_norm(network: nn.Module) -> nn.Module:
    """Make batch normalisation use the statistics of all processes' batches, by ``torch.nn.SyncBatchNorm``.

    A network without batch normalisation, such as the default one, is returned unchanged.

    Args:
        network: the network, on the device where it is trained. Names and values of its state do not change.

    Returns:
        The network, with its batch normalisation layers replaced.

    Raises:
        InputError: if a network with batch normalisation is on the CPU, which ``torch.nn.SyncBatchNorm`` refuses.
    """
    layers = [name for name, module in network.named_modules() if isinstance(module, _BatchNorm)]
    if not layers:
        return network
    device = next(network.parameters()).device
    if device.type != "cuda":
        raise InputError(
            f"the network has {len(layers)} batch normalisation layers and device is {str(device)!r}, but PyTorch "
            "synchronises such layers on GPUs only: expected GPUs, or `norm: instance` in network_def."
        )
    synchronised: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    return synchronised
