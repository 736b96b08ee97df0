"""A training stops before a loss or gradient that is not finite reaches the weights."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dbisl.handlers import FiniteCheck, NotFiniteError
from tests.engines.small_training import Streams, make_network, make_trainer

FINITE = {"segmentation": 0.5, "regression": 0.1}
EPOCH_LENGTH = 4


class _Event:
    """Stands for a CUDA event."""

    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        pass


def make_engine(device: str = "cpu", scales_gradients: bool = False) -> Any:
    state = SimpleNamespace(
        iteration=0,
        epoch_length=EPOCH_LENGTH,
        device=torch.device(device),
        batch={"labeled": {"case": ["a.nii.gz", "b.nii.gz"]}, "unlabeled": {"case": ["c.nii.gz"]}},
    )
    return SimpleNamespace(state=state, scaler=SimpleNamespace(is_enabled=lambda: scales_gradients))


def iterate(
    engine: Any, check: FiniteCheck, terms: dict[str, float], loss: float = 1.0, gradient_norm: float | None = None
) -> None:
    """Complete one more backward pass."""
    engine.state.iteration += 1
    engine.state.output = {
        "loss": torch.tensor(loss),
        "terms": {name: torch.tensor(value) for name, value in terms.items()},
    }
    if gradient_norm is not None:
        engine.state.output["gradient_norm"] = torch.tensor(gradient_norm)
    check(engine)


@pytest.mark.parametrize(
    ("values", "culprit"),
    [
        ({"terms": {**FINITE, "regression": math.nan}, "loss": math.nan}, "regression"),
        ({"terms": {"segmentation": math.inf, "regression": math.nan}}, "segmentation, regression"),
        ({"terms": FINITE, "loss": math.inf}, "the sum of its terms"),
        ({"terms": FINITE, "gradient_norm": math.nan}, "the gradient"),
    ],
)
def test_the_sentence_names_iteration_terms_and_cases(values: dict[str, Any], culprit: str) -> None:
    engine, check = make_engine(), FiniteCheck()
    iterate(engine, check, FINITE, gradient_norm=1.0)
    with pytest.raises(NotFiniteError) as error:
        iterate(engine, check, **values)
    assert str(error.value) == (
        f"the loss is not finite at iteration 2, because of {culprit}; cases of the batch: labeled: a.nii.gz, "
        "b.nii.gz; unlabeled: c.nii.gz."
    )


def test_watched_values_may_be_undefined() -> None:
    engine, check = make_engine(), FiniteCheck()
    iterate(engine, check, {**FINITE, "dice": math.nan})
    with pytest.raises(NotFiniteError, match="not finite at iteration 2, because of regression;"):
        iterate(engine, check, {**FINITE, "regression": math.nan, "dice": math.nan}, loss=math.nan)


def test_a_gradient_that_overflows_in_float16_is_left_to_the_scaler() -> None:
    engine, check = make_engine(scales_gradients=True), FiniteCheck()
    iterate(engine, check, FINITE, gradient_norm=math.inf)
    with pytest.raises(NotFiniteError, match="not finite at iteration 2, because of regression;"):
        iterate(engine, check, {**FINITE, "regression": math.nan}, loss=math.nan, gradient_norm=math.inf)


def test_on_a_gpu_the_check_comes_one_iteration_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", _Event)
    engine, check = make_engine(device="cuda"), FiniteCheck()
    iterate(engine, check, {"segmentation": math.nan})
    with pytest.raises(NotFiniteError, match="not finite at iteration 1, because of segmentation"):
        iterate(engine, check, FINITE)


def test_on_a_gpu_nothing_stays_unchecked_at_the_end_of_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", _Event)
    engine, check = make_engine(device="cuda"), FiniteCheck()
    for _ in range(EPOCH_LENGTH - 1):
        iterate(engine, check, FINITE)
    with pytest.raises(NotFiniteError, match=f"not finite at iteration {EPOCH_LENGTH}, because of segmentation"):
        iterate(engine, check, {"segmentation": math.nan})


@pytest.mark.parametrize("where", ["input", "parameter"])
def test_a_loss_that_is_not_finite_never_reaches_the_weights(where: str) -> None:
    network = make_network()
    if where == "parameter":
        torch.nn.init.constant_(network.regression.head.bias, math.nan)
    trainer = make_trainer(network, Streams(poison=where == "input"), train_handlers=[FiniteCheck()])
    before = copy.deepcopy(network.segmentation.head.state_dict())
    with pytest.raises(NotFiniteError) as error:
        trainer.run()
    message = str(error.value)
    assert "iteration 1" in message and "labeled_a.nii.gz" in message and "unlabeled_b.nii.gz" in message
    assert "regression" in message
    for name, value in network.segmentation.head.state_dict().items():
        torch.testing.assert_close(value, before[name])


def test_a_gradient_that_is_not_finite_never_reaches_the_weights() -> None:
    network = make_network()
    before = copy.deepcopy(network.state_dict())
    network.encoder.first[0].weight.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(NotFiniteError, match=r"iteration 1, because of the gradient.*labeled_a\.nii\.gz"):
        make_trainer(network, gradient_clip=1.0, train_handlers=[FiniteCheck()]).run()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter, before[name])
