"""When the unlabeled terms begin to count, and how fast."""

from __future__ import annotations

import math

import pytest
import torch
from ignite.engine import Events

from dbisl.handlers import Monitor, Ramp, RampUp
from tests.engines.small_training import make_loss, make_network, make_trainer


def factors(ramp: Ramp, dice: list[float | None], done: int = 0) -> list[float]:
    """Return the factor of each iteration.

    Args:
        ramp: the ramp.
        dice: Dice of the labeled patches in each iteration.
        done: number of iterations before the first one.
    """
    values = []
    for iteration, value in enumerate(dice, start=done + 1):
        values.append(ramp.factor(iteration))
        ramp.step(iteration, None if value is None else torch.tensor(value))
    return values


def test_rises_to_one_after_the_warm_up() -> None:
    expected = [0.0] * 4 + [math.exp(-5 * (1 - t / 5) ** 2) for t in range(5)] + [1.0] * 3
    assert factors(Ramp(warm_up=4, length=5), [0.1] * 12) == pytest.approx(expected)
    assert factors(Ramp(warm_up=0, length=0), [0.1] * 2) == [1.0, 1.0]


def test_waits_until_the_labeled_patches_are_segmented() -> None:
    ramp = Ramp(warm_up=3, length=0, min_dice=0.6)
    # The average over about ten iterations passes 0.6 between iterations 13 and 23, both of which are 3 plus tens.
    assert factors(ramp, [0.2] * 12 + [0.9] * 20) == [0.0] * 23 + [1.0] * 9


def test_patches_without_a_structure_are_ignored() -> None:
    dice: list[float | None] = [value for defined in [0.2] * 12 + [0.9] * 20 for value in (math.nan, defined, math.nan)]
    ramp = Ramp(warm_up=3, length=0, min_dice=0.6)
    # As without them (after the 13th to 23rd defined Dice), but three times as late.
    assert 39 <= factors(ramp, dice).index(1.0) <= 69
    assert not any(factors(Ramp(warm_up=3, length=0, min_dice=0.6), [math.nan] * 40))


def test_starts_after_the_longest_warm_up_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    ramp = Ramp(warm_up=3, length=0, min_dice=0.6, max_warm_up=15)
    assert factors(ramp, [0.25] * 20) == [0.0] * 15 + [1.0] * 5
    (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warning == (
        "iteration 15: the unlabeled terms start although the Dice of the labeled patches is 0.25 (expected 0.60)"
    )


def test_without_labeled_patches_it_only_waits_for_the_iterations() -> None:
    assert factors(Ramp(warm_up=4, length=0, min_dice=0.6), [None] * 8) == [0.0] * 4 + [1.0] * 4


def test_a_resumed_ramp_goes_on_where_it_stopped() -> None:
    dice: list[float | None] = [0.2] * 14 + [0.9] * 20
    whole = factors(Ramp(warm_up=2, length=6, min_dice=0.5), dice)
    assert 0 < whole[24] < 1
    for stop in (17, 24):
        first, second = (Ramp(warm_up=2, length=6, min_dice=0.5) for _ in range(2))
        before = factors(first, dice[:stop])
        second.load_state_dict(first.state_dict())
        assert before + factors(second, dice[stop:], done=stop) == whole


def test_the_factor_of_a_paused_ramp_is_zero() -> None:
    ramp, resumed = (Ramp(warm_up=0, length=0) for _ in range(2))
    ramp.paused = True
    resumed.load_state_dict(ramp.state_dict())
    assert resumed.factor(1) == 0 and not resumed.waiting
    resumed.paused = False
    assert resumed.factor(2) == 1


def test_impossible_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="numbers of iterations, got -1 and 5"):
        Ramp(warm_up=-1, length=5)
    with pytest.raises(ValueError, match=r"min_dice must be in \[0, 1\), got 1"):
        Ramp(warm_up=3, length=0, min_dice=1)


# ---- RampUp ----


def test_the_factor_is_set_before_each_iteration() -> None:
    loss, values = make_loss(), []
    trainer = make_trainer(
        make_network(),
        loss_function=loss,
        epoch_length=12,
        train_handlers=[RampUp(loss=loss, ramp=Ramp(warm_up=4, length=5)), Monitor()],
    )
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: values.append((loss.ramp, engine.state.output["terms"]["ramp"]))
    )
    trainer.run()
    expected = [0.0] * 4 + [math.exp(-5 * (1 - t / 5) ** 2) for t in range(5)] + [1.0] * 3
    assert [factor for factor, _ in values] == pytest.approx(expected)
    assert all(factor == watched for factor, watched in values)


@pytest.mark.parametrize("monitor", ["attached before", "attached after"])
def test_the_ramp_learns_the_dice_of_the_labeled_patches(monitor: str) -> None:
    loss, ramp = make_loss(), Ramp(warm_up=3, length=0, min_dice=0.99)
    handlers = [Monitor(), RampUp(loss=loss, ramp=ramp)]
    if monitor == "attached after":
        handlers.reverse()
    trainer = make_trainer(make_network(), loss_function=loss, epoch_length=3, train_handlers=handlers)
    trainer.run()
    assert ramp.waiting and 0 < float(ramp.state_dict()["dice"]) < 0.99
