"""One line in the log for each epoch of a training."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.engines.evaluator import Evaluator
from monai.utils.enums import CommonKeys as Keys

logger = logging.getLogger(__name__)

FOREGROUND = ("foreground_labeled", "foreground_unlabeled")
"""The terms of :class:`dbisl.handlers.Monitor` whose ratio the line gives."""


class EpochLine:
    """Logs one line after each epoch.

    It gives the mean loss; after a validation the Dice, also by class; with unlabeled scans the foreground that is
    predicted on them, as a part of the foreground in the labels (near 0, the training has collapsed to background); and
    the time that is left. For example::

        epoch 6 of 15: loss 0.412, validation Dice 0.843 (anterior 0.851, posterior 0.835), best so far, unlabeled
        foreground 96.1% of the labels', 4 min left

    Attach it after the validation and after :class:`dbisl.handlers.Checkpoints`, in every process; the first logs.

    Args:
        evaluator: its key metric is the Dice. A metric of MONAI that keeps its details, ``cases x (K - 1)``, also gives
            the Dice by class.
        class_names: names of the classes, background first.
    """

    def __init__(self, *, evaluator: Evaluator, class_names: Sequence[str]) -> None:
        self.evaluator = evaluator
        self.class_names = list(class_names)
        self._sums: torch.Tensor | None = None
        self._began: float | None = None
        self._epochs = 0

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.STARTED, self._reset)
        engine.add_event_handler(Events.EPOCH_STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._log)

    def _reset(self, engine: Engine) -> None:
        self._sums, self._began, self._epochs = None, None, 0

    def _begin(self, engine: Engine) -> None:
        if self._began is None:
            self._began = time.perf_counter()

    def _add(self, engine: Any) -> None:
        terms = engine.state.output["terms"]
        loss = torch.as_tensor(engine.state.output[Keys.LOSS]).detach().float()
        zero = torch.zeros_like(loss)
        both = all(name in terms for name in FOREGROUND)
        fractions = [terms[name] if both else zero for name in FOREGROUND]
        values = torch.stack([loss, torch.ones_like(loss), *fractions])
        self._sums = values if self._sums is None else self._sums + values  # on its device: nothing waits for a GPU

    def _log(self, engine: Any) -> None:
        self._epochs += 1
        if self._sums is None or self._began is None:
            return
        loss, count, labeled, unlabeled = idist.all_reduce(self._sums).tolist()  # type: ignore[union-attr]
        self._sums = None
        parts = [f"epoch {engine.state.epoch} of {engine.state.max_epochs}: loss {loss / count:.3f}"]
        parts += self._validation(engine)
        if labeled > 0:
            parts.append(f"unlabeled foreground {100 * unlabeled / labeled:.1f}% of the labels'")
        seconds = (time.perf_counter() - self._began) / self._epochs
        left = seconds * (engine.state.max_epochs - engine.state.epoch)
        parts.append(f"{_duration(left)} left")
        if idist.get_rank() == 0:
            logger.info(", ".join(parts))

    def _validation(self, engine: Any) -> list[str]:
        """What this epoch's validation gave; nothing where there was none."""
        state: Any = self.evaluator.state
        # The evaluator's metrics are of this epoch if its own epoch is: MONAI's ValidationHandler hands it on.
        if state.epoch != engine.state.epoch or state.key_metric_name not in state.metrics:
            return []
        score = float(state.metrics[state.key_metric_name])
        by_class = self._by_class(state.metric_details.get(state.key_metric_name))
        text = f"validation Dice {score:.3f}" + (f" ({by_class})" if by_class else "")
        return [text, "best so far"] if score == getattr(engine.state, "best_score", None) else [text]

    def _by_class(self, dice: torch.Tensor | None) -> str:
        names = self.class_names[1:]
        if dice is None or len(names) == 1 or dice.shape[1:] != (len(names),):
            return ""
        means = dice.nanmean(dim=0).tolist()
        pairs = zip(names, means, strict=True)
        return ", ".join(f"{name} {'absent' if math.isnan(mean) else f'{mean:.3f}'}" for name, mean in pairs)


def _duration(seconds: float) -> str:
    """Return a duration in words: ``40 s``, ``12 min`` or ``2 h 05 min``."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
