"""The teacher: a moving average of the trained network."""

from __future__ import annotations

from typing import Any

from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler


class MeanTeacher:
    """Keeps a teacher's weights at the exponential moving average of a student's, after each iteration.

    The decay of iteration ``t`` is ``min(decay, (1 + t) / (10 + t))``: while the student changes fast, the average is
    short, because averaging very different weights gives a useless network (measured on the left atrium after 200
    iterations with a constant decay of 0.99: the student had a Dice of 0.81, the teacher 0.03).

    When a training starts (not when it resumes), the teacher becomes a copy of the student, so that weights which
    another handler loads into the student at the start reach the teacher too: attach this handler after such a one. The
    same happens when somebody has put weights into the student since the last run, as in each round of a federated
    training.

    Args:
        ema: Ignite's handler that holds both networks; its momentum is ``1 - decay``.
    """

    def __init__(self, *, ema: EMAHandler) -> None:
        self.ema = ema
        self._versions: list[int] | None = None

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.STARTED, self._copy_student)
        engine.add_event_handler(Events.ITERATION_STARTED, self._set_momentum)
        engine.add_event_handler(Events.COMPLETED, self._remember_student)
        self.ema.attach(engine, name="ema_momentum")

    def _copy_student(self, engine: Engine) -> None:
        replaced = self._versions is not None and self._versions != self._student_versions()
        if engine.state.iteration == 0 or replaced:
            self.ema.ema_model.load_state_dict(self.ema.model.state_dict())

    def _set_momentum(self, engine: Any) -> None:
        engine.state.ema_momentum = max(self.ema.momentum, 9 / (10 + engine.state.iteration))

    def _remember_student(self, engine: Engine) -> None:
        self._versions = self._student_versions()

    def _student_versions(self) -> list[int]:
        """PyTorch's count of writes to each weight."""
        return [parameter._version for parameter in self.ema.model.parameters()]
