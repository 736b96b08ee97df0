"""The unlabeled terms pause while far too little or too much foreground is predicted on the unlabeled scans."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ignite.engine import Engine

from dbisl.handlers import CollapseGuard, Ramp, RampUp
from tests.engines.small_training import make_loss


def make_guard(ramp: Ramp) -> CollapseGuard:
    return CollapseGuard(ramp=ramp, min_ratio=0.2, max_ratio=3.0)


def test_the_unlabeled_terms_pause_until_the_foreground_is_back(caplog: pytest.LogCaptureFixture) -> None:
    loss = make_loss()
    ramp = Ramp(warm_up=0, length=0)
    # Fraction of foreground on the unlabeled scans in each epoch, with 0.1 in the labels: fine, collapsed twice,
    # recovered, everywhere, recovered.
    fractions = [0.05, 0.01, 0.019, 0.021, 0.31, 0.29, 0.1]
    ramps: list[float] = []

    def iteration(engine: Engine, batch: Any) -> dict[str, Any]:
        ramps.append(loss.ramp)
        values = {"foreground_labeled": 0.1, "foreground_unlabeled": fractions[engine.state.epoch - 1]}
        return {
            "terms": {name: torch.tensor(value) for name, value in values.items()},
            "class_fractions": torch.tensor([[0.9, 0.1], [0.9, 0.1]]),
        }

    engine = Engine(iteration)
    RampUp(loss=loss, ramp=ramp).attach(engine)
    make_guard(ramp).attach(engine)
    engine.run([0, 1], max_epochs=7)
    assert ramps == [1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 0, 0, 1, 1]
    warnings = [record.message for record in caplog.records if "only supervised terms" in record.message]
    assert len(warnings) == 3 and warnings[0].startswith("epoch 2: the unlabeled scans show 10% of the foreground")
    assert warnings[2].startswith("epoch 5: the unlabeled scans show 310% of the foreground")


def test_partly_annotated_labels_count_with_all_their_voxels_for_the_lower_limit() -> None:
    """Annotators choose slices that show the structure: it is rarer in all voxels than in the annotated ones."""
    ramp = Ramp(warm_up=0, length=0)
    terms = {"foreground_labeled": 0.5, "foreground_at_least": 0.05, "foreground_unlabeled": 0.05}

    def iteration(engine: Engine, batch: Any) -> dict[str, Any]:
        return {
            "terms": {name: torch.tensor(value) for name, value in terms.items()},
            "class_fractions": torch.ones(2, 2),
        }

    engine = Engine(iteration)
    make_guard(ramp).attach(engine)
    engine.run([0])
    assert not ramp.paused
    terms["foreground_unlabeled"] = 0.009
    engine.run([0])
    assert ramp.paused


def test_a_class_that_is_no_longer_predicted_is_named(caplog: pytest.LogCaptureFixture) -> None:
    ramp = Ramp(warm_up=0, length=0)
    fractions = torch.tensor([[0.8, 0.1, 0.1], [0.7, 0.29, 0.01]])
    terms = {"foreground_labeled": fractions[0, 1:].sum(), "foreground_unlabeled": fractions[1, 1:].sum()}
    engine = Engine(lambda engine, batch: {"terms": terms, "class_fractions": fractions})
    make_guard(ramp).attach(engine)
    engine.run([0, 1])
    (message,) = [record.message for record in caplog.records]
    assert message == (
        "epoch 1: the unlabeled scans show 10% of what the labels show of class 2 (expected at least 20%)."
    )
    assert not ramp.paused


@pytest.mark.parametrize(("warm_up", "paused"), [(4, False), (3, True)])
def test_the_guard_waits_for_the_end_of_the_warm_up(warm_up: int, paused: bool) -> None:
    ramp = Ramp(warm_up=warm_up, length=0)
    terms = {"foreground_labeled": torch.tensor(0.1), "foreground_unlabeled": torch.tensor(0.0)}
    engine = Engine(lambda engine, batch: {"terms": terms, "class_fractions": torch.ones(2, 2)})
    RampUp(loss=make_loss(), ramp=ramp).attach(engine)
    make_guard(ramp).attach(engine)
    engine.run([0, 1], max_epochs=2)
    assert ramp.paused == paused


def test_impossible_ratios_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 0 <= min_ratio < 1 < max_ratio"):
        CollapseGuard(ramp=Ramp(warm_up=0, length=0), min_ratio=1.0, max_ratio=3.0)
