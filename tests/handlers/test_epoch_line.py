"""The line of an epoch in the log."""

from __future__ import annotations

import logging
import math
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events

from dbisl.handlers import EpochLine

CLASSES = ["background", "organ", "tumour"]
LOSSES = [1.0, 2.0, 0.5, 0.5]


def train(
    caplog: pytest.LogCaptureFixture,
    classes: list[str] = CLASSES,
    validated: tuple[int, ...] = (2,),
    terms: dict[str, list[float]] | None = None,
) -> list[str]:
    """Return the lines of a training of two epochs with two iterations."""
    validation = SimpleNamespace(epoch=0, key_metric_name="dice", metrics={}, metric_details={})

    def step(engine: Any, batch: int) -> dict[str, Any]:
        of_batch = {name: torch.tensor(values[batch]) for name, values in (terms or {}).items()}
        return {"loss": torch.tensor(LOSSES[batch]), "terms": of_batch}

    def validate(engine: Any) -> None:
        if engine.state.epoch in validated:
            engine.state.best_score = 0.75
            validation.epoch, validation.metrics = engine.state.epoch, {"dice": 0.75}
            validation.metric_details = {"dice": torch.tensor([[0.5, math.nan], [0.7, 0.9]])[:, : len(classes) - 1]}

    engine = Engine(step)
    engine.add_event_handler(Events.EPOCH_COMPLETED, validate)
    EpochLine(evaluator=SimpleNamespace(state=validation), class_names=classes).attach(engine)  # type: ignore[arg-type]
    with caplog.at_level(logging.INFO):
        engine.run(range(4), max_epochs=2, epoch_length=2)
    return [line for line in caplog.messages if line.startswith("epoch ")]


def test_one_line_an_epoch_with_the_mean_loss_and_the_dice_by_class(caplog: pytest.LogCaptureFixture) -> None:
    assert train(caplog) == [
        "epoch 1 of 2: loss 1.500, 0 s left",
        "epoch 2 of 2: loss 0.500, validation Dice 0.750 (organ 0.600, tumour 0.900), best so far, 0 s left",
    ]


def test_one_class_is_not_named_twice(caplog: pytest.LogCaptureFixture) -> None:
    lines = train(caplog, classes=["background", "organ"], validated=(1,))
    assert lines[0] == "epoch 1 of 2: loss 1.500, validation Dice 0.750, best so far, 0 s left"
    assert lines[1] == "epoch 2 of 2: loss 0.500, 0 s left"


def test_foreground_is_the_ratio_of_the_epoch(caplog: pytest.LogCaptureFixture) -> None:
    terms = {"foreground_labeled": [0.1, 0.3, 0.2, 0.2], "foreground_unlabeled": [0.1, 0.2, 0.0, 0.0]}
    lines = train(caplog, terms=terms)
    assert "unlabeled foreground 75.0% of the labels'" in lines[0]
    assert "unlabeled foreground 0.0% of the labels'" in lines[1]
    del terms["foreground_unlabeled"]
    caplog.clear()
    assert "foreground" not in " ".join(train(caplog, terms=terms))


def test_only_the_first_process_logs(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dbisl.handlers.epoch_line.idist.get_rank", lambda: 1)
    assert train(caplog) == []


@pytest.mark.parametrize(
    ("seconds_an_epoch", "left"), [(5.0, "45 s"), (400.0, "60 min|1 h 00 min"), (40.0, "6 min"), (1000.0, "2 h 30 min")]
)
def test_time_left_follows_from_the_epochs_so_far(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, seconds_an_epoch: float, left: str
) -> None:
    clock = [0.0]
    monkeypatch.setattr("dbisl.handlers.epoch_line.time.perf_counter", lambda: clock[0])

    def step(engine: Engine, batch: int) -> dict[str, Any]:
        clock[0] += seconds_an_epoch
        return {"loss": torch.tensor(1.0), "terms": {}}

    engine = Engine(step)
    evaluator: Any = SimpleNamespace(state=SimpleNamespace(epoch=0, key_metric_name=None, metrics={}))
    EpochLine(evaluator=evaluator, class_names=CLASSES).attach(engine)
    with caplog.at_level(logging.INFO):
        engine.run([0], max_epochs=10)
    assert re.fullmatch(
        rf"epoch 1 of 10: loss 1.000, ({left}) left", next(line for line in caplog.messages if "loss" in line)
    )
