"""What a training saves, and how it is resumed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events

from dbisl.utils import InputError
from tests.engines.small_training import ITERATIONS, Session, make_network


def names(folder: Path) -> list[str]:
    """Names of the files in a folder."""
    return sorted(path.name for path in folder.iterdir())


def test_files_are_complete_and_the_models_are_the_teachers_weights(tmp_path: Path) -> None:
    session = Session(tmp_path, epochs=2)
    session.trainer.run()
    assert names(tmp_path) == ["checkpoint.pt", "model.json", "model.pt", "model_final.pt"]
    final = torch.load(tmp_path / "model_final.pt", weights_only=True)
    for name, value in session.teacher.state_dict().items():
        torch.testing.assert_close(final[name], value)
    make_network().load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))


def test_a_failed_training_leaves_no_final_model(tmp_path: Path) -> None:
    session = Session(tmp_path, epochs=2)

    def fail(engine: Any) -> None:
        raise RuntimeError("power cut")

    session.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=5), fail)
    with pytest.raises(RuntimeError, match="power cut"):
        session.trainer.run()
    assert names(tmp_path) == ["checkpoint.pt", "model_best.pt"]


def test_a_resumed_training_goes_on_where_it_stopped(tmp_path: Path) -> None:
    first = Session(tmp_path, epochs=2)
    first.trainer.run()
    resumed = Session(tmp_path, epochs=4, resume=True)
    started: list[tuple[int, float]] = []
    resumed.trainer.add_event_handler(
        Events.ITERATION_STARTED,
        lambda engine: started.append((engine.state.iteration, resumed.optimizer.param_groups[0]["lr"])),
    )
    resumed.trainer.run()
    assert [iteration for iteration, _ in started] == [7, 8, 9, 10, 11, 12]
    rates = [0.5 * 1e-2 * (1 + math.cos(math.pi * epoch / 6)) for epoch in range(4)]
    # The schedule steps after the checkpoint is written: the resumed epoch repeats the last rate.
    assert started[0][1] == pytest.approx(rates[1])
    assert resumed.trainer.state.epoch == 4


def test_without_publishing_a_training_is_saved_and_resumed(tmp_path: Path) -> None:
    first = Session(tmp_path, epochs=1, publish=False)
    first.trainer.run()
    assert names(tmp_path) == ["checkpoint.pt", "model_best.pt", "model_final.pt"]
    checkpoint = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert set(checkpoint) == {"network", "teacher", "optimizer", "schedule", "trainer"}
    assert checkpoint["trainer"]["best_score"] == first.evaluator.state.metrics["dice"]
    assert "trained_on" not in checkpoint["trainer"]
    resumed = Session(tmp_path, epochs=2, resume=True, publish=False)
    resumed.trainer.run()
    assert resumed.trainer.state.epoch == 2 and resumed.trainer.state.iteration == 2 * ITERATIONS
    assert names(tmp_path) == ["checkpoint.pt", "model_best.pt", "model_final.pt"]


def test_a_worse_model_does_not_replace_the_best_one_after_resuming(tmp_path: Path) -> None:
    Session(tmp_path, epochs=1).trainer.run()
    checkpoint = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    checkpoint["trainer"]["best_score"] = 2.0  # a Dice that nothing reaches
    torch.save(checkpoint, tmp_path / "checkpoint.pt")
    written = (tmp_path / "model.pt").stat().st_mtime_ns
    Session(tmp_path, epochs=3, resume=True).trainer.run()
    assert (tmp_path / "model.pt").stat().st_mtime_ns == written
    assert not (tmp_path / "model_best.pt").exists()


def test_resuming_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"checkpoint\.pt: not found; resuming needs"):
        Session(tmp_path, epochs=1, resume=True).trainer.run()


def test_the_checkpoint_of_another_method_is_refused(tmp_path: Path) -> None:
    torch.save({"network": {}}, tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match=r"holds \['network'\]; expected \['network', 'optimizer'"):
        Session(tmp_path, epochs=1, resume=True).trainer.run()


def test_a_checkpoint_without_the_names_of_the_labeled_scans_is_refused(tmp_path: Path) -> None:
    Session(tmp_path, epochs=1, publish=False).trainer.run()
    with pytest.raises(InputError, match=r"checkpoint\.pt: .*as a training with the same method and version writes\.$"):
        Session(tmp_path, epochs=2, resume=True).trainer.run()


def test_a_checkpoint_with_another_epoch_length_is_refused(tmp_path: Path) -> None:
    Session(tmp_path, epochs=1).trainer.run()
    resumed = Session(tmp_path, epochs=2, resume=True)
    resumed.trainer.state.epoch_length = 5
    with pytest.raises(InputError, match="has 3 iterations an epoch, this one 5; expected the same"):
        resumed.trainer.run()
