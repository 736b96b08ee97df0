"""When the unlabeled terms begin to count, and how fast."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events

from dbisl.losses import DBiSLLoss

logger = logging.getLogger(__name__)


class Ramp:
    """Factor of the unlabeled terms: it rises from 0 to 1 once the labels have taught enough.

    Before the rise the factor is 0, the warm-up: consistency between two untrained tasks teaches both to predict
    background, and the pseudo-labels of a teacher that knows little teach errors. The warm-up takes at least
    ``warm_up`` iterations and lasts until the Dice of the labeled patches (averaged over about ten iterations) has
    reached ``min_dice``; after ``max_warm_up`` iterations it ends in any case, with a warning. Without labeled patches
    there is no Dice to wait for. Then ``lambda(t) = exp(-5 * (1 - min(1, t / length))^2)`` (Laine and Aila, 2017).

    Args:
        warm_up: least number of iterations at 0.
        length: iterations from the end of the warm-up to 1.
        min_dice: Dice to wait for, in [0, 1); 0: wait only for ``warm_up``.
        max_warm_up: largest number of iterations at 0, where that is more than ``warm_up``; None: no limit.

    Attributes:
        paused: whether the factor is 0 for the time being, whatever the iteration.

    Raises:
        ValueError: for a negative number of iterations, or a ``min_dice`` out of range.
    """

    CHECKED_EVERY = 10
    """Iterations between two looks at the Dice; a look waits for a GPU."""

    def __init__(self, *, warm_up: int, length: int, min_dice: float = 0.0, max_warm_up: int | None = None) -> None:
        if warm_up < 0 or length < 0:
            raise ValueError(f"warm_up and length are numbers of iterations, got {warm_up} and {length}.")
        if not 0 <= min_dice < 1:
            raise ValueError(f"min_dice must be in [0, 1), got {min_dice}.")
        self.warm_up = warm_up
        self.length = length
        self.min_dice = min_dice
        self.max_warm_up = math.inf if max_warm_up is None else max(warm_up, max_warm_up)
        self.paused = False
        self._started_after: int | None = 0 if warm_up == 0 and min_dice == 0 else None
        self._dice: torch.Tensor | None = None

    @property
    def waiting(self) -> bool:
        """Whether the warm-up still lasts."""
        return self._started_after is None

    def has_started(self, iteration: int) -> bool:
        """Whether an iteration, counted from 1, comes after the warm-up."""
        return self._started_after is not None and iteration > self._started_after

    def factor(self, iteration: int) -> float:
        """Return ``lambda`` of an iteration, counted from 1."""
        if self._started_after is None or not self.has_started(iteration) or self.paused:
            return 0.0
        since = iteration - 1 - self._started_after
        progress = 1.0 if since >= self.length else since / self.length
        return math.exp(-5 * (1 - progress) ** 2)

    def step(self, iteration: int, dice: torch.Tensor | None) -> None:
        """Take note of a completed iteration, and end the warm-up if it is time.

        Args:
            iteration: its number, counted from 1.
            dice: Dice of its labeled patches, a scalar or NaN; None without labeled patches.
        """
        if not self.waiting:
            return
        if dice is not None:
            self._dice = dice if self._dice is None else _running_mean(self._dice, dice)
        late = iteration >= self.max_warm_up
        if iteration < self.warm_up or ((iteration - self.warm_up) % self.CHECKED_EVERY and not late):
            return
        reached = 1.0 if self._dice is None else float(idist.all_reduce(self._dice.clone())) / idist.get_world_size()
        if reached >= self.min_dice:
            logger.info(
                "iteration %d: the unlabeled terms start; the Dice of the labeled patches is %.2f", iteration, reached
            )
        elif late:
            logger.warning(
                "iteration %d: the unlabeled terms start although the Dice of the labeled patches is %.2f (expected "
                "%.2f)",
                iteration,
                reached,
                self.min_dice,
            )
        else:
            return
        self._started_after = iteration

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training needs."""
        return {"started_after": self._started_after, "dice": self._dice, "paused": self.paused}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        self._started_after, self._dice, self.paused = state["started_after"], state["dice"], state["paused"]


class RampUp:
    """Sets ``loss.ramp``, the factor of the unlabeled terms, before each iteration.

    Args:
        loss: the loss whose ``ramp`` is set.
        ramp: gives the factor, and learns the Dice of the labeled patches after each iteration from the output's
            ``terms``, where :class:`dbisl.handlers.Monitor` puts it. Without a Monitor there is no Dice to wait for.
    """

    def __init__(self, *, loss: DBiSLLoss, ramp: Ramp) -> None:
        self.loss = loss
        self.ramp = ramp

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.ITERATION_STARTED, self._set_factor)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._note_dice)

    def _set_factor(self, engine: Engine) -> None:
        self.loss.ramp = self.ramp.factor(engine.state.iteration)

    def _note_dice(self, engine: Any) -> None:
        self.ramp.step(engine.state.iteration, engine.state.output["terms"].get("dice"))


def _running_mean(mean: torch.Tensor, dice: torch.Tensor) -> torch.Tensor:
    """The running mean after one more Dice; a Dice of NaN leaves it unchanged."""
    return torch.where(dice.isnan(), mean, torch.where(mean.isnan(), dice, torch.lerp(mean, dice, 0.1)))
