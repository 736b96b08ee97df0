"""Guards a training against predicting far too little or far too much foreground."""

from __future__ import annotations

import logging
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events

from dbisl.handlers.ramp import Ramp

logger = logging.getLogger(__name__)


class CollapseGuard:
    """Pauses the unlabeled terms while far too little or too much foreground is predicted on the unlabeled scans.

    Predicting one class everywhere satisfies all unlabeled terms; once the teacher does so, only the supervised terms
    can recover. After each epoch in which the unlabeled terms counted, the mean fraction of foreground on the unlabeled
    scans is compared with the fraction in the labels. If it lies outside ``min_ratio`` to ``max_ratio`` times that
    fraction, the next epoch has only supervised terms, and so on until it is back. A warning says so each time.

    With partly annotated labels, ``min_ratio`` refers to the fraction among all voxels, because annotators choose
    slices that show the structure. A class that falls below ``min_ratio`` by itself is named in the log, but does not
    pause: a rare class may be found late, or be rarer in the unlabeled scans.

    Attach it with a :class:`dbisl.handlers.Monitor`, which computes the fractions.

    Args:
        ramp: the ramp to pause.
        min_ratio: least ratio; 0: never pause for too little, for unlabeled scans that mostly show no structure.
        max_ratio: largest ratio; infinity: never pause for too much.

    Raises:
        ValueError: unless ``0 <= min_ratio < 1 < max_ratio``.
    """

    def __init__(self, *, ramp: Ramp, min_ratio: float, max_ratio: float) -> None:
        if not 0 <= min_ratio < 1 < max_ratio:
            raise ValueError(f"expected 0 <= min_ratio < 1 < max_ratio, got {min_ratio} and {max_ratio}.")
        self.ramp = ramp
        self.min_ratio, self.max_ratio = min_ratio, max_ratio
        self._fractions: torch.Tensor | None = None
        self._class_fractions: torch.Tensor | None = None

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add_fractions)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._decide)

    def _add_fractions(self, engine: Any) -> None:
        output = engine.state.output
        terms = output["terms"]
        if "class_fractions" not in output or not self.ramp.has_started(engine.state.iteration):
            return
        labeled, unlabeled = terms["foreground_labeled"], terms["foreground_unlabeled"]
        fractions = torch.stack([terms.get("foreground_at_least", labeled), labeled, unlabeled])
        self._fractions = fractions if self._fractions is None else self._fractions + fractions
        of_classes = output["class_fractions"]
        self._class_fractions = of_classes if self._class_fractions is None else self._class_fractions + of_classes

    def _decide(self, engine: Any) -> None:
        fractions, of_classes = self._fractions, self._class_fractions
        self._fractions = self._class_fractions = None
        if fractions is None or of_classes is None:
            return
        self._name_missing_classes(engine, of_classes)
        at_least, labeled, unlabeled = idist.all_reduce(fractions).tolist()  # type: ignore[union-attr]
        self.ramp.paused = not self.min_ratio * at_least <= unlabeled <= self.max_ratio * labeled
        if self.ramp.paused:
            logger.warning(
                "epoch %d: the unlabeled scans show %.0f%% of the foreground that the labels show (expected %.0f%% to "
                "%.0f%%): the next epoch has only supervised terms.",
                engine.state.epoch,
                100 * unlabeled / max(labeled, 1e-9),
                100 * self.min_ratio,
                100 * self.max_ratio,
            )

    def _name_missing_classes(self, engine: Engine, of_classes: torch.Tensor) -> None:
        in_labels, predicted = idist.all_reduce(of_classes).tolist()  # type: ignore[union-attr]
        for index, (labeled, unlabeled) in enumerate(zip(in_labels, predicted, strict=True)):
            if index > 0 and unlabeled < self.min_ratio * labeled:
                logger.warning(
                    "epoch %d: the unlabeled scans show %.0f%% of what the labels show of class %d (expected at least "
                    "%.0f%%).",
                    engine.state.epoch,
                    100 * unlabeled / labeled,
                    index,
                    100 * self.min_ratio,
                )
