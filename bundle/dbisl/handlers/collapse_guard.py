"""Ignite handlers of the workflow: ramp-up, guard against collapse, teacher, checkpoints, previews."""

from __future__ import annotations

import logging
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events

from dbisl.handlers.ramp import Ramp

logger = logging.getLogger(__name__)


class CollapseGuard:
    """Holds the terms that need no label at 0 while far too little or too much foreground is found without labels.

    An answer of one class everywhere satisfies every such term, and once the teacher gives it nothing but the labeled
    terms leads back. After each epoch in which those terms counted, the mean fraction of foreground on the unlabeled
    scans is compared with that in the labels; outside of ``min_ratio`` to ``max_ratio`` times it, the next epoch is one
    of labeled terms alone, and so on until it is back. Each time is logged as a warning. Of labels that were annotated
    in part, ``min_ratio`` is of the fraction among all voxels: who outlines some slices chooses those that show the
    structure. A single class of which less than ``min_ratio`` is found is named in the log, but holds nothing: a rare
    one may be found late, or be rarer in the scans without a label.

    Args:
        ramp: which is held.
        min_ratio: 0 holds nothing for too little: for unlabeled scans of which most show none of the structures.
        max_ratio: infinity holds nothing for too much.
    """

    def __init__(self, *, ramp: Ramp, min_ratio: float, max_ratio: float) -> None:
        if not 0 <= min_ratio < 1 < max_ratio:
            raise ValueError(f"expected 0 <= min_ratio < 1 < max_ratio, got {min_ratio} and {max_ratio}.")
        self.ramp = ramp
        self.min_ratio, self.max_ratio = min_ratio, max_ratio
        self._sums: torch.Tensor | float = 0.0
        self._classes: torch.Tensor | float = 0.0

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.decide)

    def add(self, engine: Any) -> None:
        terms = engine.state.output["terms"]
        if not {"foreground_labeled", "foreground_unlabeled"} <= terms.keys():
            return
        if self.ramp.has_started(engine.state.iteration):
            labeled, unlabeled = terms["foreground_labeled"], terms["foreground_unlabeled"]
            self._sums = self._sums + torch.stack([terms.get("foreground_at_least", labeled), labeled, unlabeled])
            self._classes = self._classes + engine.state.output["classes"]

    def decide(self, engine: Any) -> None:
        (sums, classes), self._sums, self._classes = (self._sums, self._classes), 0.0, 0.0
        if isinstance(sums, float):
            return
        self._name_missing(engine, classes)
        at_least, labeled, unlabeled = idist.all_reduce(sums).tolist()  # type: ignore[union-attr]
        self.ramp.paused = not self.min_ratio * at_least <= unlabeled <= self.max_ratio * labeled
        if self.ramp.paused:
            logger.warning(
                "epoch %d: the unlabeled scans show %.0f%% of the foreground that the labels show (expected %.0f%% to "
                "%.0f%%): the next epoch has labeled terms alone.",
                engine.state.epoch,
                100 * unlabeled / max(labeled, 1e-9),
                100 * self.min_ratio,
                100 * self.max_ratio,
            )

    def _name_missing(self, engine: Engine, classes: Any) -> None:
        in_labels, found = idist.all_reduce(classes).tolist()  # type: ignore[union-attr]
        for index, (labeled, unlabeled) in enumerate(zip(in_labels, found, strict=True)):
            if index > 0 and unlabeled < self.min_ratio * labeled:
                logger.warning(
                    "epoch %d: the unlabeled scans show %.0f%% of what the labels show of class %d (expected at least "
                    "%.0f%%).",
                    engine.state.epoch,
                    100 * unlabeled / labeled,
                    index,
                    100 * self.min_ratio,
                )
