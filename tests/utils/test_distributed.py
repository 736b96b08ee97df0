"""Two processes: sums over them, the gradients of the loss, the shares of the cases; and how processes are started."""

from __future__ import annotations

import copy
import logging
import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dbisl.bridge import SDMToSegmentation, SegmentationToSDM
from dbisl.losses import TERMS, DBiSLLoss
from dbisl.networks import DualTaskVNet
from dbisl.utils import (
    InputError,
    checks_passed,
    rank_device,
    share_of_rank,
    start_processes,
    sum_over_ranks,
    synchronise_batch_norm,
)
from scripts.make_demo_data import make_demo_data

Ranks = Callable[..., list[Any]]


CONTINUED: list[float] = []
"""In each of the two processes: when its checks ended (first process), or when it continued (second process)."""


def join(port: int, rank: int) -> None:
    """Start a process as ``multi_gpu_train.json`` does, with the environment of torchrun."""
    torch.set_num_threads(1)
    logging.basicConfig()
    logging.getLogger().handlers[0].setLevel(logging.INFO)
    environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in environment.items()})
    start_processes("cpu")
    if rank == 0:
        time.sleep(0.2)  # the checks
    CONTINUED.append(time.time())
    checks_passed()


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    """Run ``ranks(function, *arguments)``: ``function(rank, *arguments)`` in each of two processes.

    Returns the result of each. The processes share the memory of tensor arguments: copy a network before using it.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn = multiprocessing.get_context("spawn")
    pools = [ProcessPoolExecutor(1, spawn, initializer=join, initargs=(port, rank)) for rank in range(2)]

    def call(function: Callable[..., Any], *arguments: Any) -> list[Any]:
        calls = [pool.submit(function, rank, *arguments) for rank, pool in enumerate(pools)]
        return [one.result(timeout=60) for one in calls]

    yield call
    for pool in pools:
        pool.shutdown()


def sum_and_gradient(rank: int) -> tuple[np.ndarray, np.ndarray]:
    own = torch.tensor([1.0, 2.0]) * (rank + 1)
    total = sum_over_ranks(own.requires_grad_())
    ((rank + 1) * total.square().sum()).backward()
    return total.detach().numpy(), own.grad.numpy()


def test_sum_over_ranks_and_its_gradient(ranks: Ranks) -> None:
    for total, gradient in ranks(sum_and_gradient):
        np.testing.assert_allclose(total, [3, 6])
        # The losses of both ranks together are 3 * total^2.
        np.testing.assert_allclose(gradient, [3 * 2 * 3, 3 * 2 * 6])


def test_sum_of_one_process_is_the_tensor_itself() -> None:
    tensor = torch.ones(2)
    assert sum_over_ranks(tensor) is tensor


# ---- batch normalisation ----

NORMALISED_BY_INSTANCE = {"features": 4, "levels": 2}
NORMALISED_BY_BATCH = {**NORMALISED_BY_INSTANCE, "norm": "batch"}


def test_network_without_batch_norm_is_returned_unchanged() -> None:
    network = DualTaskVNet(**NORMALISED_BY_INSTANCE)
    modules = list(network.modules())
    assert synchronise_batch_norm(network) is network
    assert all(module is before for module, before in zip(network.modules(), modules, strict=True))


def test_batch_norm_on_a_cpu_is_refused() -> None:
    network = DualTaskVNet(**NORMALISED_BY_BATCH)
    layers = sum(isinstance(module, nn.BatchNorm3d) for module in network.modules())
    assert layers > 0
    with pytest.raises(InputError) as caught:
        synchronise_batch_norm(network)
    assert str(caught.value) == (
        f"the network has {layers} batch normalisation layers and device is 'cpu', but PyTorch synchronises such "
        "layers on GPUs only: expected GPUs, or `norm: instance` in network_def."
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch synchronises batch normalisation on GPUs only")
def test_batch_norm_on_a_gpu_becomes_that_of_pytorch_and_keeps_its_state() -> None:
    network = DualTaskVNet(**NORMALISED_BY_BATCH).cuda()
    network(torch.randn(2, 1, 4, 4, 4, device="cuda"))  # statistics that differ from the initial ones
    synchronised = synchronise_batch_norm(copy.deepcopy(network))
    for ours, theirs in zip(synchronised.modules(), network.modules(), strict=True):
        assert isinstance(ours, nn.SyncBatchNorm) == isinstance(theirs, nn.BatchNorm3d)
    state, expected = synchronised.state_dict(), network.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], expected[name]) for name in expected)


# ---- the whole step ----


def train_step(network: nn.Module, part: slice) -> dict[str, np.ndarray]:
    """Return the loss and its gradients for a part of the labeled and of the unlabeled batch."""
    generator = torch.Generator().manual_seed(1)
    size = (8, 8, 8)
    images = torch.randn(2, 4, 1, *size, generator=generator)
    label = torch.randint(0, 3, (4, 1, *size), generator=generator)
    sdm = 2 * torch.rand(4, 3, *size, generator=generator) - 1
    loss_function = DBiSLLoss(
        weights=dict.fromkeys(TERMS, 1.0),
        sdm_to_segmentation=SDMToSegmentation(5.0),
        segmentation_to_sdm=SegmentationToSDM(3.0, sharpness=4.0),
        gamma=1.0,
    )
    prediction = network(torch.cat([batch[part] for batch in images]).double())
    loss, _ = loss_function(prediction, label[part], sdm[part])
    loss.backward()
    gradients = {name.removeprefix("module."): p.grad.numpy() for name, p in network.named_parameters()}
    return {"loss": loss.detach().numpy(), **gradients}


def train_step_of_rank(rank: int, network: nn.Module) -> dict[str, np.ndarray]:
    wrapped = DistributedDataParallel(synchronise_batch_norm(copy.deepcopy(network)))
    return train_step(wrapped, slice(2 * rank, 2 * rank + 2))


def test_two_processes_descend_as_one_does_with_both_batches(ranks: Ranks) -> None:
    torch.manual_seed(0)
    network = DualTaskVNet(out_channels=3, features=4, levels=2).double()
    whole = train_step(copy.deepcopy(network), slice(None))
    first, second = ranks(train_step_of_rank, network)
    assert (first["loss"] + second["loss"]) / 2 == pytest.approx(whole["loss"], rel=1e-6)
    scale = max(np.abs(gradient).max() for name, gradient in whole.items() if name != "loss")
    for name in set(whole) - {"loss"}:
        np.testing.assert_array_equal(first[name], second[name])
        np.testing.assert_allclose(first[name], whole[name], rtol=1e-4, atol=1e-5 * scale, err_msg=name)


# ---- what differs between processes ----


def start_of_rank(rank: int, configs: str, data: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return the weights, the first labeled patch, and the cases of the first unlabeled batch."""
    files = [f"{configs}/train.json", f"{configs}/multi_gpu_train.json"]
    options = {"dataset_dir": data, "device": "cpu", "num_workers": 0, "features": 4}
    options |= {"warm_up": 0, "min_dice": 0}  # unlabeled patches from the first batch on
    parser = ConfigWorkflow(files, logging_file=False, **options).parser
    parser.get_parsed_content("set_seed")  # the process has joined the group already
    network = parser.get_parsed_content("train#trainer#network")
    weights = torch.cat([parameter.detach().flatten() for parameter in network.parameters()])
    batch = next(iter(parser.get_parsed_content("train#streams")))
    cases = [Path(case).name for case in batch["unlabeled"]["case"]]
    return weights.numpy(), batch["labeled"]["image"][0].numpy(), cases


def test_weights_start_alike_but_scans_and_augmentations_differ(ranks: Ranks, root: Path, tmp_path: Path) -> None:
    make_demo_data(str(tmp_path / "data"), num_labeled=1, num_unlabeled=4, num_validation=1)
    configs = str(root / "bundle" / "configs")
    (weights, patch, cases), (other_weights, other_patch, other_cases) = ranks(
        start_of_rank, configs, str(tmp_path / "data")
    )
    np.testing.assert_array_equal(weights, other_weights)
    assert not np.allclose(patch, other_patch)  # both from the one labeled scan
    assert len({*cases, *other_cases}) == 4


def share(rank: int, number: int) -> list[int]:
    return list(share_of_rank(list(range(number))))


@pytest.mark.parametrize("number", [0, 1, 2, 3, 8])
def test_every_case_is_validated_equally_often_and_no_process_is_idle(ranks: Ranks, number: int) -> None:
    shares = ranks(share, number)
    counts = [sum(case in own for own in shares) for case in range(number)]
    assert len(set(counts)) <= 1
    assert number == 0 or all(shares)
    if number >= 2:
        assert counts == [1] * number


def test_one_process_validates_all_cases_and_waits_for_none() -> None:
    assert list(share_of_rank([0, 1, 2])) == [0, 1, 2]
    checks_passed()


# ---- starting the processes ----


def started(rank: int) -> tuple[int, int, int, float]:
    """Return the rank, the number of processes, its log level, and the time in ``CONTINUED``."""
    return idist.get_rank(), idist.get_world_size(), logging.getLogger().handlers[0].level, CONTINUED[0]


def test_other_processes_wait_for_the_checks_and_log_warnings_only(ranks: Ranks) -> None:
    first, second = ranks(started)
    assert first[:3] == (0, 2, logging.INFO)
    assert second[:3] == (1, 2, logging.WARNING)
    assert second[3] >= first[3]


def test_device_is_that_of_the_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert rank_device() == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert rank_device() == torch.device("cuda:1")


def test_too_many_processes_and_none_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(InputError, match="more than 1 processes on a machine of 1 GPUs"):
        rank_device()
    monkeypatch.delenv("LOCAL_RANK")
    with pytest.raises(InputError, match="start them by `torchrun"):
        rank_device()
