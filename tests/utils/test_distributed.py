"""What several processes share, on two of them: sums, batch normalisation, the loss, the cases of the validation."""

from __future__ import annotations

import copy
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from monai.bundle import ConfigWorkflow
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dbisl.bridge import SDMToSegmentation, SegmentationToSDM
from dbisl.losses import TERMS, DBiSLLoss
from dbisl.networks import DualTaskVNet
from dbisl.utils import InputError, rank_device, share_of_rank, sum_over_ranks, synchronise_batch_norm
from dbisl.utils.distributed import SyncBatchNorm
from scripts.make_demo_data import make_demo_data

Ranks = Callable[..., list[Any]]


def join(store: str, rank: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """``ranks(function, *arguments)``: what ``function(rank, *arguments)`` returns in each of two processes.

    Tensors among the arguments lie in memory that the processes share: a network has to be copied.
    """
    store = str(tmp_path_factory.mktemp("ranks") / "store")
    spawn = multiprocessing.get_context("spawn")
    pools = [ProcessPoolExecutor(1, spawn, initializer=join, initargs=(store, rank)) for rank in range(2)]

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


def norm_step(norm: nn.Module, images: torch.Tensor, weights: torch.Tensor) -> dict[str, np.ndarray]:
    """Two steps of a weighted sum of the answer; the gradients and the state after the second."""
    for _ in range(2):
        norm.zero_grad()
        image = images.clone().requires_grad_()
        answer = norm(image)
        (answer * weights).sum().backward()
    values = {"answer": answer.detach(), "gradient": image.grad, **norm.state_dict()}
    values |= {f"gradient of {name}": parameter.grad for name, parameter in norm.named_parameters()}
    return {name: value.numpy() for name, value in values.items()}


def norm_step_of_rank(rank: int, norm: nn.Module, images: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    part = slice(0, 1) if rank == 0 else slice(1, None)  # batches of different sizes
    own = (torch.from_numpy(array[part].copy()) for array in (images, weights))
    return norm_step(synchronise_batch_norm(copy.deepcopy(norm))[0], *own)


@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}])
def test_batch_norm_of_two_parts_is_that_of_the_whole(ranks: Ranks, options: dict[str, Any]) -> None:
    generator = np.random.default_rng(0)
    images = 100 + generator.normal(size=(4, 3, 2, 3, 4))  # a mean far from 0 shows cancellation
    weights = generator.normal(size=images.shape)
    norm = nn.Sequential(nn.BatchNorm3d(3, dtype=torch.float64, **options))
    if norm[0].affine:
        nn.init.uniform_(norm[0].weight)
        nn.init.uniform_(norm[0].bias)
    whole = norm_step(copy.deepcopy(norm)[0], torch.from_numpy(images), torch.from_numpy(weights))
    # Without weights there is no parameter that says where the network is: a convolution beside it does.
    first, second = ranks(norm_step_of_rank, nn.Sequential(norm[0], nn.Conv3d(3, 1, 1)), images, weights)
    assert set(first) == set(second) == set(whole)
    for name, value in whole.items():
        if name in ("answer", "gradient"):
            ours = np.concatenate([first[name], second[name]])
        elif name.startswith("gradient of"):
            ours = first[name] + second[name]
        else:
            ours = first[name]
            np.testing.assert_array_equal(second[name], ours)
        np.testing.assert_allclose(ours, value, rtol=1e-9, atol=1e-9, err_msg=name)


def mixed_precision_answer(rank: int) -> tuple[np.ndarray, np.ndarray, bool]:
    torch.manual_seed(0)
    whole = torch.randn(4, 3, 2, 4, 6).to(memory_format=torch.channels_last_3d)
    norm = synchronise_batch_norm(nn.Sequential(nn.BatchNorm3d(3)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        image = nn.functional.conv3d(whole[2 * rank : 2 * rank + 2], torch.eye(3).view(3, 3, 1, 1, 1))
        answer = norm(image)
        expected = nn.BatchNorm3d(3)(nn.functional.conv3d(whole, torch.eye(3).view(3, 3, 1, 1, 1)))
    alike = answer.dtype == image.dtype == torch.bfloat16
    alike &= answer.is_contiguous(memory_format=torch.channels_last_3d)
    return answer.detach().float().numpy(), expected[2 * rank : 2 * rank + 2].detach().float().numpy(), alike


def test_batch_norm_keeps_type_and_memory_format(ranks: Ranks) -> None:
    for answer, expected, alike in ranks(mixed_precision_answer):
        assert alike
        np.testing.assert_allclose(answer, expected, atol=0.02)


def test_synchronised_network_keeps_its_state_and_its_evaluation() -> None:
    torch.manual_seed(0)
    network = DualTaskVNet(features=4, levels=2)
    network(torch.randn(2, 1, 4, 4, 4))  # statistics that are not the initial ones
    synchronised = synchronise_batch_norm(copy.deepcopy(network))
    for ours, theirs in zip(synchronised.modules(), network.modules(), strict=True):
        assert isinstance(ours, SyncBatchNorm) == isinstance(theirs, nn.BatchNorm3d)
    state, expected = synchronised.state_dict(), network.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    image = torch.randn(2, 1, 4, 4, 4)
    for training in (True, False):  # in one process it is a batch normalisation like any other
        for ours, theirs in zip(synchronised.train(training)(image), network.train(training)(image), strict=True):
            torch.testing.assert_close(ours, theirs)


# ---- the whole step ----


def train_step(network: nn.Module, part: slice) -> dict[str, np.ndarray]:
    """Loss and gradients for that part of the labeled and of the unlabeled batch."""
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


# ---- what each process has of its own ----


def start_of_rank(rank: int, configs: str, data: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The weights, the first labeled patch and the cases of the first unlabeled batch."""
    files = [f"{configs}/train.json", f"{configs}/multi_gpu_train.json"]
    options = {"dataset_dir": data, "device": "cpu", "num_workers": 0, "network_def#features": 4}
    options |= {"warm_up": 0, "min_dice": 0}  # unlabeled patches from the first batch on
    parser = ConfigWorkflow(files, logging_file=False, **options).parser
    parser.get_parsed_content("initialize#2")  # the group has been joined before
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
    assert not np.allclose(patch, other_patch)  # of the one labeled scan
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
