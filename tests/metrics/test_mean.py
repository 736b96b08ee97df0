"""The mean of a scalar that some iterations leave undefined."""

from __future__ import annotations

import math

import pytest
import torch
from ignite.engine import Engine

from dbisl.metrics import MeanOfDefined


def test_mean_leaves_out_what_is_undefined() -> None:
    mean = MeanOfDefined()
    engine = Engine(lambda engine, value: value)
    mean.attach(engine, "mean")
    assert engine.run([0.25, math.nan, torch.tensor(0.75)]).metrics["mean"] == pytest.approx(0.5)
    assert math.isnan(engine.run([math.nan]).metrics["mean"])
