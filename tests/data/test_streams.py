"""Endless batches of labeled and unlabeled scans."""

from __future__ import annotations

import logging
from itertools import islice

import pytest
import torch
from monai.data import DataLoader, Dataset

from dbisl.data import EndlessSampler, TwoStreamLoader


def stream(size: int, batch_size: int, offset: int = 0) -> DataLoader:
    """Return a loader of scans whose image is their index plus ``offset``."""
    dataset = Dataset([{"image": torch.tensor([offset + index])} for index in range(size)])
    return DataLoader(dataset, batch_size=batch_size, sampler=EndlessSampler(dataset, seed=3))


def test_each_pass_has_every_scan_once_in_another_order() -> None:
    indices = list(islice(EndlessSampler(range(10), seed=0), 30))
    passes = [indices[start : start + 10] for start in (0, 10, 20)]
    assert all(sorted(one) == list(range(10)) for one in passes)
    assert len({tuple(one) for one in passes}) == 3
    assert indices == list(islice(EndlessSampler(range(10), seed=0), 30))
    assert indices != list(islice(EndlessSampler(range(10), seed=1), 30))


def test_processes_share_each_pass() -> None:
    parts = [list(islice(EndlessSampler(range(9), seed=5, rank=rank, world_size=3), 6)) for rank in range(3)]
    assert sorted(index for part in parts for index in part[:3]) == list(range(9))
    assert sorted(index for part in parts for index in part[3:]) == list(range(9))
    with pytest.raises(ValueError, match=r"rank must be in \[0, 2\), got 2"):
        EndlessSampler(range(9), rank=2, world_size=2)


def test_the_labeled_stream_repeats_while_the_unlabeled_one_runs_through() -> None:
    batches = list(islice(TwoStreamLoader(stream(3, 2), stream(10, 2, offset=100)), 5))
    labeled = [int(i) for batch in batches for i in batch["labeled"]["image"]]
    unlabeled = [int(i) for batch in batches for i in batch["unlabeled"]["image"]]
    assert sorted(labeled[:3]) == sorted(labeled[3:6]) == [0, 1, 2]
    assert sorted(unlabeled) == list(range(100, 110))


def test_labeled_patches_replace_unlabeled_ones_while_labels_only_says_so() -> None:
    waiting = True
    loader = TwoStreamLoader(stream(8, 2), stream(6, 3, offset=100), labels_only=lambda: waiting)
    batches = iter(loader)
    first = next(batches)
    assert set(first) == {"labeled"} and first["labeled"]["image"].shape == (6, 1)
    waiting = False
    later = [next(batches) for _ in range(2)]
    assert all(batch["labeled"]["image"].shape == (2, 1) for batch in later)
    labeled = [int(i) for batch in [first, *later] for i in batch["labeled"]["image"]]
    assert sorted(labeled[:8]) == list(range(8))
    unlabeled = [int(i) for batch in later for i in batch["unlabeled"]["image"]]
    assert sorted(unlabeled) == list(range(100, 106))  # no unlabeled scan was skipped


def test_a_batch_may_be_larger_than_the_dataset() -> None:
    batch = next(iter(TwoStreamLoader(stream(1, 4), stream(5, 1))))
    assert batch["labeled"]["image"].flatten().tolist() == [0, 0, 0, 0]


def test_without_unlabeled_scans_the_log_says_so_and_batches_are_labeled(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        batches = list(islice(TwoStreamLoader(stream(3, 2), stream(0, 2)), 3))
    assert all(set(batch) == {"labeled"} and len(batch["labeled"]["image"]) == 4 for batch in batches)
    assert "no unlabeled scans" in caplog.text
    (batch,) = islice(TwoStreamLoader(stream(3, 2), stream(0, 1)), 1)
    assert len(batch["labeled"]["image"]) == 4  # at least as many patches as with unlabeled scans


def test_without_labeled_scans_the_loader_is_refused() -> None:
    with pytest.raises(ValueError, match="no labeled scans"):
        TwoStreamLoader(stream(0, 2), stream(3, 2))


def test_without_labeled_scans_batches_are_unlabeled_if_labels_are_optional(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        batches = list(islice(TwoStreamLoader(stream(0, 2), stream(3, 2), labels_required=False), 3))
    assert all(set(batch) == {"unlabeled"} for batch in batches)
    assert "no labeled scans" in caplog.text
    with pytest.raises(ValueError, match="no labeled scans"):
        TwoStreamLoader(stream(0, 2), stream(0, 2), labels_required=False)
