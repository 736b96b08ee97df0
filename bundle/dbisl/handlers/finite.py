"""Stops a training whose loss is no longer a number."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from ignite.engine import Engine
from monai.engines.utils import IterationEvents
from monai.utils.enums import CommonKeys as Keys

from dbisl.losses import TERMS


class NotFiniteError(ValueError):
    """The loss became NaN or infinite."""


@dataclass(frozen=True)
class _Check:
    """The flags of one iteration, on their way to the CPU; ``copied`` is None where they are there at once."""

    iteration: int
    names: list[str]
    finite: torch.Tensor
    cases: dict[str, list[str]]
    copied: Any


class FiniteCheck:
    """Stops the training where the loss, one of its terms or the gradient is NaN or infinite.

    On a CPU, the check comes before the optimizer's step, so that the weights stay finite. On a GPU the flags are read
    one iteration later, because reading them earlier would wait for the GPU. At the end of an epoch nothing stays
    unchecked, so that no broken checkpoint is written.

    Raises:
        NotFiniteError: while running; the sentence names the terms and the cases of the batch.
    """

    def __init__(self) -> None:
        self._pending: deque[_Check] = deque()

    def attach(self, engine: Engine) -> None:
        """Register with a trainer that scales the loss by ``engine.scaler``."""
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        state = engine.state
        terms = state.output["terms"]
        values = {"loss": state.output[Keys.LOSS], **{name: terms[name] for name in TERMS if name in terms}}
        # The scaler skips a float16 gradient that overflows; any other infinite gradient would destroy the weights.
        if "gradient_norm" in state.output and not engine.scaler.is_enabled():
            values["the gradient"] = state.output["gradient_norm"]
        finite = torch.stack([value.isfinite() for value in values.values()]).to("cpu", non_blocking=True)
        copied = torch.cuda.Event() if state.device.type == "cuda" else None
        if copied is not None:
            copied.record()
        cases = {stream: list(batch["case"]) for stream, batch in state.batch.items()}
        self._pending.append(_Check(state.iteration, list(values), finite, cases, copied))
        epoch_ends = state.iteration % state.epoch_length == 0
        while len(self._pending) > (0 if copied is None or epoch_ends else 1):
            self._require_finite(self._pending.popleft())

    def _require_finite(self, check: _Check) -> None:
        if check.copied is not None:
            check.copied.synchronize()
        if not check.finite.all():
            raise NotFiniteError(_sentence(check.iteration, check.names, check.finite.tolist(), check.cases))


def _sentence(iteration: int, names: list[str], finite: list[bool], cases: Mapping[str, list[str]]) -> str:
    culprits = [name for name, is_finite in zip(names, finite, strict=True) if not is_finite and name != "loss"]
    listed = "; ".join(f"{stream}: {', '.join(of_stream)}" for stream, of_stream in cases.items())
    return (
        f"the loss is not finite at iteration {iteration}, because of {', '.join(culprits) or 'the sum of its terms'}; "
        f"cases of the batch: {listed}."
    )
