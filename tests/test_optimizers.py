"""The schedule of the learning rate."""

from __future__ import annotations

import math

import pytest
import torch

from dbisl.optimizers import warmup_cosine_schedule


def test_factor_rises_linearly_and_then_follows_the_cosine_to_its_floor() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    (factor,) = warmup_cosine_schedule(optimizer, warmup_steps=100, t_total=1500, end_factor=0.002).lr_lambdas
    assert factor(0) == pytest.approx(0.01) and factor(49) == pytest.approx(0.5)
    assert factor(99) == pytest.approx(0.5 + 0.5 * math.cos(math.pi * 99 / 1500))
    assert factor(750) == pytest.approx(0.5)
    assert factor(1500) == factor(5000) == 0.002


def test_a_resumed_longer_training_stretches_the_curve() -> None:
    def schedule(t_total: int) -> torch.optim.lr_scheduler.LambdaLR:
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        return warmup_cosine_schedule(optimizer, warmup_steps=1, t_total=t_total, end_factor=0.002)

    short, longer = schedule(10), schedule(20)
    for _ in range(10):
        short.optimizer.step()
        short.step()
    longer.load_state_dict(short.state_dict())
    longer.optimizer.step()
    longer.step()
    assert longer.get_last_lr() == pytest.approx([0.5 + 0.5 * math.cos(math.pi * 11 / 20)])
