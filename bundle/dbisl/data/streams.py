"""The two streams of a semi-supervised training: labeled and unlabeled scans, each for ever, side by side."""

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
    """Shuffled passes over a dataset, one after another without end.

    A dataset smaller than the batch simply comes round again within one, and an epoch can be any number of iterations.

    Args:
        dataset: whatever has a length.
        seed: the order follows from it alone.
        rank, world_size: with several processes each takes every ``world_size``-th index of the same order.
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
    """Batches of both streams: ``{"labeled": batch, "unlabeled": batch}``, without end.

    Where there are no scans of one kind the batches lack its key, and the log says so. Where there are no unlabeled
    scans, and while they have no use, labeled ones take their place: a step learns from as many patches in each case.

    Args:
        labeled: loader over the labeled scans, endless by its sampler; its dataset may be empty if labels are not
            required.
        unlabeled: likewise over the unlabeled ones; its dataset may be empty.
        labels_required: whether having no labeled scans is an error.
        labels_only: asked before each batch, whether it is one of labeled patches alone.

    Raises:
        ValueError: when there are no labeled scans and labels are required, or no scans at all.
    """

    def __init__(
        self,
        labeled: DataLoader,
        unlabeled: DataLoader,
        labels_required: bool = True,
        labels_only: Callable[[], bool] = lambda: False,
    ) -> None:
        if len(labeled.dataset) == 0 and (labels_required or len(unlabeled.dataset) == 0):  # type: ignore[arg-type]
            raise ValueError("there are no labeled scans to train on.")
        self.labeled = labeled
        self.unlabeled = unlabeled
        self.labels_only = labels_only

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        labeled, unlabeled = len(self.labeled.dataset), len(self.unlabeled.dataset)  # type: ignore[arg-type]
        logger.info("training on %d labeled and %d unlabeled scans", labeled, unlabeled)
        if unlabeled == 0:
            logger.warning("no unlabeled scans: training is supervised, on the labeled scans only")
        if labeled == 0:
            logger.warning("no labeled scans: training has the unlabeled terms alone")
            for batch in self.unlabeled:
                yield {"unlabeled": batch}
            return
        of_unlabeled = iter(self.unlabeled)
        of_labeled = iter(self.labeled)
        in_its_place = math.ceil(self.unlabeled.batch_size / self.labeled.batch_size)  # type: ignore[operator]
        for batch in of_labeled:
            if unlabeled == 0 or self.labels_only():
                yield {"labeled": _join([batch, *islice(of_labeled, in_its_place)])}
            else:
                yield {"labeled": batch, "unlabeled": next(of_unlabeled)}


def _join(batches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One batch of the items of several: tensors one after another, and lists of names likewise."""
    columns = {key: [batch[key] for batch in batches] for key in batches[0]}
    return {
        key: torch.cat(values) if isinstance(values[0], torch.Tensor) else [item for part in values for item in part]
        for key, values in columns.items()
    }
