"""Which weights are served, which were served before, and how a training replaces them."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events

from dbisl.handlers import ModelVersions
from dbisl.utils import InputError, read_recipe
from dbisl.utils.recipe import read_record
from tests.data.make_scans import write_scan
from tests.engines.small_training import Session, make_network


def publish(folder: Path, content: bytes, score: float | None) -> None:
    (folder / "new.pt").write_bytes(content)
    ModelVersions(folder).publish(folder / "new.pt", score, ["b.nii.gz", "a.nii.gz"])


def record_of(folder: Path) -> dict:
    """Read the record of the served weights."""
    return json.loads((folder / "model.json").read_text())


# ---- ModelVersions ----


def test_published_weights_are_served_and_described(tmp_path: Path) -> None:
    publish(tmp_path, b"one", 0.5)
    record = record_of(tmp_path)
    assert (tmp_path / "model.pt").read_bytes() == b"one"
    assert record["score"] == 0.5 and record["trained_on"] == ["a.nii.gz", "b.nii.gz"]
    assert ModelVersions(tmp_path).record() == record
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.pt"]


def test_weights_are_never_without_their_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def publish_with(content: bytes, class_names: list[str]) -> None:
        (tmp_path / "new.pt").write_bytes(content)
        ModelVersions(tmp_path).publish(tmp_path / "new.pt", 0.5, [], {"class_names": class_names})

    def die(versions: ModelVersions) -> None:
        raise KeyboardInterrupt

    publish_with(b"hippocampus", ["background", "hippocampus"])
    with monkeypatch.context() as killed:
        killed.setattr(ModelVersions, "_settle", die)
        with pytest.raises(KeyboardInterrupt):
            publish_with(b"heart", ["background", "heart"])
    assert (tmp_path / "model.pt").read_bytes() == b"heart"
    assert read_recipe(tmp_path / "model.pt", {})["class_names"] == ["background", "heart"]
    publish_with(b"spleen", ["background", "spleen"])
    assert read_recipe(tmp_path / "model.pt", {})["class_names"] == ["background", "spleen"]
    assert len(ModelVersions(tmp_path).names()) == 2


def test_weights_from_elsewhere_have_only_a_date(tmp_path: Path) -> None:
    publish(tmp_path, b"one", 0.5)
    (tmp_path / "model.pt").write_bytes(b"other")  # by hand: the record describes other weights
    os.utime(tmp_path / "model.pt", (0, 0))
    record = ModelVersions(tmp_path).record()
    assert record["score"] is None and record["trained_on"] == [] and record["date"].startswith("1970-01-01")


def test_every_version_can_be_restored(tmp_path: Path) -> None:
    versions = ModelVersions(tmp_path)
    for content, score in ((b"one", 0.5), (b"two", None), (b"three", 0.7)):
        publish(tmp_path, content, score)
    first, second = versions.names()
    assert "_0.5000_" in first and "_unvalidated_" in second
    assert versions.restore() == second
    assert (tmp_path / "model.pt").read_bytes() == b"two" and versions.record()["score"] is None
    assert versions.restore(first) == first
    assert (tmp_path / "model.pt").read_bytes() == b"one" and versions.record()["score"] == 0.5
    kept = [(tmp_path / "versions" / f"{name}.pt").read_bytes() for name in versions.names()]
    assert kept == [b"three", b"two"]  # in the order in which they were replaced
    versions.restore()
    assert (tmp_path / "model.pt").read_bytes() == b"two"


def test_a_version_keeps_its_recipe(tmp_path: Path) -> None:
    versions = ModelVersions(tmp_path)
    for name in ("heart", "hippocampus"):
        (tmp_path / "new.pt").write_bytes(name.encode())
        versions.publish(tmp_path / "new.pt", 0.5, ["a.nii.gz"], {"class_names": ["background", name]})
    assert read_recipe(versions.served, {})["class_names"] == ["background", "hippocampus"]
    versions.restore()
    assert read_recipe(versions.served, {})["class_names"] == ["background", "heart"]


def test_a_process_that_was_killed_while_it_replaced_the_model(tmp_path: Path) -> None:
    publish(tmp_path, b"one", 0.5)
    publish(tmp_path, b"two", 0.6)
    # As far as it came: the served weights are already a version, and another version has only its record.
    record = {**ModelVersions(tmp_path).record(), "replaced": "2999-01-01T00:00:00Z"}
    os.link(tmp_path / "model.pt", tmp_path / "versions" / "late.pt")
    (tmp_path / "versions" / "late.json").write_text(json.dumps(record))
    (tmp_path / "versions" / "later.json").write_text(json.dumps(record))
    versions = ModelVersions(tmp_path)
    assert len(versions.names()) == 1 and "_0.5000_" in versions.restore()
    assert (tmp_path / "model.pt").read_bytes() == b"one"
    assert not [path for path in tmp_path.rglob(".*")]


def test_a_version_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no version to restore; there are: none"):
        ModelVersions(tmp_path).restore()
    publish(tmp_path, b"one", 0.5)
    publish(tmp_path, b"two", 0.6)
    with pytest.raises(InputError, match=r"has no version 2020; there are: .*_0\.5000_"):
        ModelVersions(tmp_path).restore("2020")


def test_commands(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(tmp_path, b"one", 0.5)
    publish(tmp_path, b"two", 0.6)
    (name,) = ModelVersions(tmp_path).names()

    # In this process: a new one takes seconds to import PyTorch.
    script = "label_app/versions.py"
    monkeypatch.setattr(sys, "argv", [script, "list", str(tmp_path)])
    monkeypatch.setattr(sys, "path", sys.path.copy())
    runpy.run_path(str(root / "bundle" / script), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("model.pt: ") and "score 0.6, 2 labeled scans" in lines[0] and lines[1:] == [name]

    command = [sys.executable, script, "restore", str(tmp_path)]
    restored = subprocess.run(command, capture_output=True, text=True, cwd=root / "bundle", check=True)
    assert restored.stdout.strip() == f"model.pt is {name} again"
    assert (tmp_path / "model.pt").read_bytes() == b"one"


# ---- PublishModel ----


def test_only_a_better_model_replaces_the_served_one(tmp_path: Path) -> None:
    good = Session(tmp_path, epochs=2)
    good.trainer.run()
    record = record_of(tmp_path)
    served = (tmp_path / "model.pt").read_bytes()
    assert record["score"] == pytest.approx(good.score_of_served()) and record["trained_on"] == ["a.nii.gz"]
    # A worse model does not replace it, but stays beside it.
    worse = Session(tmp_path, epochs=1)
    worse.trainer.run()
    assert worse.evaluator.state.metrics["dice"] < record["score"]
    assert (tmp_path / "model.pt").read_bytes() == served
    assert (tmp_path / "model_best.pt").is_file() and not (tmp_path / "versions").exists()
    # A better model takes its place, and it becomes a version.
    better = Session(tmp_path, epochs=3)
    better.trainer.run()
    assert (tmp_path / "model.pt").read_bytes() != served
    assert better.score_of_served() >= record["score"]
    (version,) = (tmp_path / "versions").glob("*.pt")
    assert version.read_bytes() == served and f"{record['score']:.4f}" in version.name


def test_a_training_shorter_than_the_validation_interval_is_validated_at_its_end(tmp_path: Path) -> None:
    Session(tmp_path, epochs=2).trainer.run()
    served = (tmp_path / "model.pt").read_bytes()
    short = Session(tmp_path, epochs=1, interval=3)
    short.trainer.run()
    assert short.evaluator.state.epoch == 1
    assert (tmp_path / "model.pt").read_bytes() == served and not (tmp_path / "versions").exists()


def test_the_record_names_the_labeled_scans_of_the_weights_that_a_training_started_from(tmp_path: Path) -> None:
    Session(tmp_path, epochs=2).trainer.run()
    Session(tmp_path, epochs=1, labeled="b.nii.gz", weights=tmp_path / "model.pt", interval=5).trainer.run()
    Session(tmp_path, epochs=3, labeled="b.nii.gz", resume=True).trainer.run()
    assert record_of(tmp_path)["trained_on"] == ["a.nii.gz", "b.nii.gz"]
    Session(tmp_path, epochs=1, labeled="c.nii.gz", validated_on="b.nii.gz").trainer.run()  # from new weights
    assert record_of(tmp_path)["trained_on"] == ["c.nii.gz"]


def test_evaluating_the_served_model_does_not_change_the_training(tmp_path: Path) -> None:
    finals, draws = {}, {"new": [], "old": []}
    for name in draws:
        folder = tmp_path / name
        folder.mkdir()
        if name == "old":
            torch.save(make_network().state_dict(), folder / "model.pt")
        session = Session(folder, epochs=2)
        # Random numbers in validation and training, as random transforms and dropout draw them.
        session.evaluator.add_event_handler(Events.ITERATION_COMPLETED, lambda: torch.rand(()))
        session.trainer.add_event_handler(
            Events.ITERATION_STARTED, lambda drawn: drawn.append(float(torch.rand(()))), draws[name]
        )
        session.trainer.run()
        finals[name] = torch.load(folder / "model_final.pt", weights_only=True)
    assert draws["new"] == draws["old"]
    assert all(torch.equal(finals["new"][name], finals["old"][name]) for name in finals["new"])


@pytest.mark.parametrize("served", ["of another network", "trained on a validation scan"])
def test_a_served_model_that_cannot_be_compared_is_replaced(tmp_path: Path, served: str) -> None:
    if served == "of another network":
        torch.save({"weight": torch.zeros(1)}, tmp_path / "model.pt")
    else:
        Session(tmp_path, epochs=2, labeled="v.nii.gz").trainer.run()
    before = (tmp_path / "model.pt").read_bytes()
    Session(tmp_path, epochs=1).trainer.run()
    assert (tmp_path / "model.pt").read_bytes() != before
    assert [path.read_bytes() for path in (tmp_path / "versions").glob("*.pt")] == [before]


def test_without_validation_scans_the_last_network_is_served(tmp_path: Path) -> None:
    Session(tmp_path, epochs=1, validation=0).trainer.run()
    best, final = (torch.load(tmp_path / name, weights_only=True) for name in ("model.pt", "model_final.pt"))
    assert all(torch.equal(best[name], final[name]) for name in final)


def recipe_for(spacing: float) -> dict[str, Any]:
    return {"class_names": ["background", "ball"], "spacing": [spacing] * 3, "patch_size": [8, 8, 8], "in_channels": 1}


def test_each_file_of_weights_has_the_recipe_and_the_scans(tmp_path: Path) -> None:
    scans = [write_scan(tmp_path / "scans" / f"{name}.nii.gz") for name in ("a", "u")]
    models = tmp_path / "models"
    models.mkdir()
    for epochs in (3, 1):  # the second is worse: its best network stays beside the served one
        options: dict[str, Any] = {"recipe": recipe_for(1.0), "unlabeled": scans[1:]}
        Session(models, epochs=epochs, labeled=str(scans[0]), **options).trainer.run()
    for name in ("model", "model_best", "model_final"):
        record = read_record(models / f"{name}.pt")
        assert record is not None and (record["score"] is None) == (name == "model_final")
        recipe = record["recipe"]
        assert recipe_for(1.0).items() <= recipe.items()
        described = recipe["scans"]
        assert [list(described[kind].values()) for kind in ("labeled", "unlabeled")] == [["a.nii.gz"], ["u.nii.gz"]]
        assert described["measured"] == 2 and str(tmp_path) not in json.dumps(recipe)


def test_served_weights_of_another_recipe_are_replaced(tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "a.nii.gz")
    Session(tmp_path, epochs=3, labeled=str(scan), recipe=recipe_for(1.0)).trainer.run()
    served = (tmp_path / "model.pt").read_bytes()
    Session(tmp_path, epochs=1, labeled=str(scan), recipe=recipe_for(2.0)).trainer.run()
    assert (tmp_path / "model.pt").read_bytes() != served
    assert record_of(tmp_path)["recipe"]["spacing"] == [2.0] * 3
