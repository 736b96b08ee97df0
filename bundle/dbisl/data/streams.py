"""The two streams of semi-supervised training: endless batches of labeled scans and of unlabeled scans."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

logger = logging.getLogger(__name__)


class EndlessSampler(Sampler[int]):
    """Sampler that passes over a dataset without end, each time in another random order.

    A batch may be larger than the dataset, and an epoch may have any number of iterations.

    Args:
        dataset: any object with a length. Its length may be 0, which gives no index.
        seed: seed of the order. The same seed gives the same order.
        rank: index of this process. With several processes, each takes every ``world_size``-th index of one order.
        world_size: number of processes.

    Raises:
        ValueError: if ``rank`` is not in ``[0, world_size)``.
    """

    def __init__(self, dataset: Sized, seed: int = 0, rank: int = 0, world_size: int = 1) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in [0, {world_size}), got {rank}.")
        self.dataset = dataset
        self.seed = seed
        self.rank = rank
        self.world_size = world_size

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed)
        position = 0
        while len(self.dataset) > 0:
            for index in torch.randperm(len(self.dataset), generator=generator).tolist():
                if position % self.world_size == self.rank:
                    yield index
                position += 1


class TwoStreamLoader:
    """Loader that gives batches of both streams without end: ``{"labeled": batch, "unlabeled": batch}``.

    Without unlabeled scans, and while ``labels_only`` says so, a batch has labeled patches in place of the unlabeled
    ones, so that each step has as many patches as before. Such a batch has no key ``"unlabeled"``. Without labeled
    scans, a batch has no key ``"labeled"``. The log says which stream is empty.

    Args:
        labeled: loader of the labeled scans, with an endless sampler. Its dataset may be empty if ``labels_required``
            is false.
        unlabeled: loader of the unlabeled scans, with an endless sampler. Its dataset may be empty.
        labels_required: whether an empty labeled dataset is an error.
        labels_only: function that is called before each batch. While it returns true, the batch has labeled patches
            only.

    Raises:
        ValueError: if there are no labeled scans although labels are required, or no scans at all.
    """

    def __init__(
        self,
        labeled: DataLoader,
        unlabeled: DataLoader,
        labels_required: bool = True,
        labels_only: Callable[[], bool] = lambda: False,
    ) -> None:
        if len(labeled.dataset) == 0 and (labels_required or len(unlabeled.dataset) == 0):  # type: ignore[arg-type]
            raise ValueError("There are no labeled scans to train on.")
        self.labeled = labeled
        self.unlabeled = unlabeled
        self.labels_only = labels_only

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        labeled, unlabeled = len(self.labeled.dataset), len(self.unlabeled.dataset)  # type: ignore[arg-type]
        logger.info("training on %d labeled and %d unlabeled scans", labeled, unlabeled)
        if unlabeled == 0:
            logger.warning("no unlabeled scans: training is supervised and uses the labeled scans only")
        if labeled == 0:
            logger.warning("no labeled scans: training uses the unlabeled loss terms only")
            for batch in self.unlabeled:
                yield {"unlabeled": batch}
            return
        unlabeled_batches = iter(self.unlabeled)
        labeled_batches = iter(self.labeled)
        # How many labeled batches have at least as many patches as one unlabeled batch.
        replacements = math.ceil(self.unlabeled.batch_size / self.labeled.batch_size)  # type: ignore[operator]
        for batch in labeled_batches:
            if unlabeled == 0 or self.labels_only():
                yield {"labeled": _concatenate([batch, *islice(labeled_batches, replacements)])}
            else:
                yield {"labeled": batch, "unlabeled": next(unlabeled_batches)}


def _concatenate(batches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return one batch with the items of several. Tensors are joined on their first axis, lists one after another."""
    columns = {key: [batch[key] for batch in batches] for key in batches[0]}
    return {
        key: torch.cat(values) if isinstance(values[0], torch.Tensor) else [item for part in values for item in part]
        for key, values in columns.items()
    }
