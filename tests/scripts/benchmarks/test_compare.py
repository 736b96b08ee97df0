"""The comparison of methods: real cells, started, stopped and started again."""

from __future__ import annotations

import csv
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.benchmarks.cells import CellError, run_bundle
from scripts.benchmarks.compare import compare
from scripts.make_demo_data import make_demo_data

TINY = {"features": 4, "epochs": 2, "iterations_per_epoch": 1, "val_interval": 2}
COMMON = {"labels": 2, "seeds": 0, "overrides": TINY, "jobs": 2}
Run = Callable[..., None]
"""``run(name=value, ...)``: the comparison of the tests' data, into ``tmp_path / "out"``."""
Calls = list[dict[str, str]]
"""Environments of the commands that would have run."""


@pytest.fixture(scope="module", autouse=True)
def no_gpu() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "data"
    make_demo_data(str(folder), num_labeled=3, num_unlabeled=2, num_validation=2)
    return folder


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished comparison of two cells. Tests change copies of it."""
    folder = tmp_path_factory.mktemp("finished") / "out"
    # What is asked for twice is one cell.
    compare(str(data), str(folder), **{**COMMON, "methods": ["supervised", "dbisl", "dbisl"], "labels": [2, 2]})
    return folder


@pytest.fixture
def run(data: Path, tmp_path: Path) -> Run:
    def call(**options: Any) -> None:
        compare(str(data), str(tmp_path / "out"), **{"methods": ["supervised", "dbisl"], **COMMON, **options})

    return call


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Commands of the bundle are noted and do not run."""
    seen: Calls = []

    def record(run_id: str, files: Any, options: Any, log: Path, environment: dict[str, str], *_: Any) -> None:
        seen.append(environment)
        raise CellError("seen")

    monkeypatch.setattr("scripts.benchmarks.cells.run_bundle", record)
    return seen


def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "out"))


def times(folder: Path) -> dict[Path, int]:
    """When each checkpoint of a folder was written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.pt")}


def read_results(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_cells_are_reported(finished: Path) -> None:
    rows = read_results(finished)
    assert {(row["method"], row["labels"], row["seed"]) for row in rows} == {
        ("supervised", "2", "0"),
        ("dbisl", "2", "0"),
    }
    assert {row["case"] for row in rows} == {"val_00", "val_01"}
    table = (finished / "table.md").read_text()
    assert "2 validation scans; the last checkpoint" in table and "TEST" not in table
    assert "| 2 | supervised | segmentation | 1 |" in table and "| 2 | dbisl | fused | 1 |" in table
    assert "| false negatives |" in table and "| Dice minus supervised's [95% CI] |" in table
    assert (finished / "label_efficiency.png").read_bytes().startswith(b"\x89PNG")


def test_killed_cell_resumes_and_the_others_do_not_run_again(finished: Path, run: Run, tmp_path: Path) -> None:
    # As if one cell had been killed after its last epoch.
    out = copy(finished, tmp_path)
    whole, killed = out / "cells" / "supervised-2-0", out / "cells" / "dbisl-2-0"
    before = times(whole)
    (killed / "model_final.pt").unlink()
    shutil.rmtree(killed / "validation-last")
    run()
    assert times(whole) == before
    assert "resumed" in (killed / "training.log").read_text()
    assert (killed / "model_final.pt").is_file() and (killed / "validation-last" / "cases.csv").is_file()


def test_results_of_other_overrides_are_not_reused(finished: Path, run: Run, tmp_path: Path) -> None:
    out = copy(finished, tmp_path)
    before, table = times(out), (out / "table.md").read_text()
    with pytest.raises(SystemExit, match="run with another overrides: expected the same, or an empty folder"):
        run(overrides={**TINY, "learning_rate": 0.1})
    with pytest.raises(SystemExit, match=r"no finished cell of this comparison: .* run with another overrides"):
        run(overrides={**TINY, "learning_rate": 0.1}, report_only=True)
    assert (out / "table.md").read_text() == table
    assert times(out) == before


def test_best_checkpoint_is_evaluated_on_test_scans(data: Path, finished: Path, run: Run, tmp_path: Path) -> None:
    out = copy(finished, tmp_path)
    shutil.rmtree(out / "cells" / "supervised-2-0" / "validation-last")
    before = times(out)
    # Two data sets may number their scans alike.
    unseen = tmp_path / "unseen"
    for folder in ("images", "labels"):
        shutil.copytree(data / "unseen" / folder, unseen / folder)
        (unseen / folder / "unseen_00.nii.gz").rename(unseen / folder / "val_00.nii.gz")
    run(methods="supervised", checkpoint="best", evaluate_on_test_scans=str(unseen))
    table = (out / "table.md").read_text()
    assert "3 TEST scans; the checkpoint that is best on the validation scans" in table
    assert {row["case"] for row in read_results(out)} == {"val_00", "unseen_01", "unseen_02"}
    assert not list((out / "cells" / "supervised-2-0").rglob("validation-*"))
    assert times(out) == before


def test_stopped_training_goes_on_where_it_was(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "out" / "cells" / "supervised-2-0"

    def killed(run_id: str, files: Any, options: Any, *arguments: Any) -> None:
        run_bundle(run_id, files, {**options, "epochs": 1}, *arguments)
        (folder / "model_final.pt").unlink()
        raise CellError("killed")

    with monkeypatch.context() as patch:
        patch.setattr("scripts.benchmarks.cells.run_bundle", killed)
        with pytest.raises(SystemExit, match="killed"):
            run(methods="supervised")
    run(methods="supervised")
    assert "after epoch 1 of 2" in (folder / "training.log").read_text()
    assert (folder / "validation-last" / "cases.csv").is_file()


def test_a_stopped_comparison_leaves_no_training_behind(data: Path, root: Path, tmp_path: Path) -> None:
    command = [sys.executable, "scripts/benchmarks/compare.py", f"--dataset_dir={data}"]
    command += [f"--output_dir={tmp_path / 'out'}", "--methods=supervised", "--labels=2", "--seeds=[0,1]", "--jobs=1"]
    command += [f"--overrides={ {**TINY, 'epochs': 10_000} }"]
    process = subprocess.Popen(command, cwd=root, env={**os.environ, "PYTHONPATH": str(root / "bundle")})
    folder = tmp_path / "out" / "cells" / "supervised-2-0"
    deadline = time.monotonic() + 120
    while not (folder / "checkpoint.pt").is_file():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM
    log = (folder / "training.log").read_bytes()
    time.sleep(2)
    assert (folder / "training.log").read_bytes() == log and not (folder / "model_final.pt").exists()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]  # the cell that waited did not begin


def test_results_are_found_wherever_the_scans_lie(
    finished: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = copy(finished, tmp_path)
    shutil.rmtree(out / "cells" / "dbisl-2-0")
    moved = Path(shutil.copytree(data, tmp_path / "elsewhere"))
    common = {**COMMON, "methods": ["supervised", "dbisl"], "report_only": True}
    compare(str(moved), str(out), **common)
    printed = capsys.readouterr().out
    assert "dbisl-2-0 is left out: it was not run" in printed and "| 2 | supervised | segmentation | 1 |" in printed
    assert "each training of 2 epochs of 1 iterations" in printed
    labels = sorted((moved / "labels").iterdir())
    shutil.copy(labels[1], labels[0])
    with pytest.raises(SystemExit, match=r"no finished cell .* supervised-2-0 is left out: .* another scans"):
        compare(str(moved), str(out), **common)


def test_a_folder_is_trained_in_by_one_at_a_time(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "out" / "cells" / "supervised-2-0"
    folder.mkdir(parents=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(SystemExit, match="supervised-2-0 is in use: expected no other benchmark or training in it"):
            run(methods="supervised")
    assert not (folder / "training.log").exists()


def test_failing_cell_is_named_with_its_reason(run: Run, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    with pytest.raises(SystemExit) as caught:
        run(methods="supervised", overrides={"learning_rat": 0.1})
    message = str(caught.value)
    assert message.startswith("supervised-2-0 failed: training ended with code 1") and "learning_rat" in message
    assert not (tmp_path / "out" / "results.csv").exists()
    # A training that never began has no result: the same folder may be used with other overrides.
    calls: Calls = request.getfixturevalue("calls")
    with pytest.raises(SystemExit, match="supervised-2-0 failed: seen"):
        run(methods="supervised")
    assert len(calls) == 1


def test_gpus_are_those_that_the_caller_may_see(run: Run, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,MIG-a,-1,5")
    with pytest.raises(SystemExit, match="seen"):
        run(jobs=None)
    seen = [environment["CUDA_VISIBLE_DEVICES"] for environment in calls]
    assert set(seen) <= {"3", "MIG-a"} and len(seen) == 2


def test_threads_are_shared_unless_their_number_is_given(
    run: Run, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    for given in (None, "3"):
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        if given:
            monkeypatch.setenv("OMP_NUM_THREADS", given)
        with pytest.raises(SystemExit, match="seen"):
            run()
    assert [environment["OMP_NUM_THREADS"] for environment in calls] == ["4", "4", "3", "3"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ["magic"]}, r"methods has \['magic'\]: expected some of"),
        ({"baselines": "superviced"}, r"baselines has \['superviced'\]: expected some of"),
        ({"checkpoint": "first"}, "checkpoint is 'first': expected one of"),
        ({"labels": ["few"]}, r"labels has \['few'\]: expected whole numbers from 1 or 'all'"),
        ({"labels": [0, "all", 1.5]}, r"labels has \[0, 1.5\]: expected whole numbers from 1 or 'all'"),
        ({"labels": [[4]]}, r"labels has \[\[4\]\]: expected whole numbers"),
        ({"jobs": -1}, "jobs is -1: expected a whole number from 1"),
        ({"seeds": "a"}, r"seeds has \['a'\]: expected whole numbers from 0"),
        ({"seeds": []}, "seeds is empty"),
        ({"config_file": "nothing.yaml"}, r"config_file .*nothing\.yaml is not a file"),
        ({"overrides": [1]}, r"overrides is \[1\]: expected config keys with their values"),
        ({"overrides": {"seed": 3}}, r"overrides has \['seed'\]: expected none of .* which each cell sets"),
        ({"labels": [2, 4]}, "labels has 4: expected at most 3, the labeled scans of .*data"),
        (
            {"methods": ["dbisl", "dtc"], "overrides": {"loss_weights#regression": 0.3}},
            r"overrides has loss_weights#regression: expected a key that .*dtc\.yaml does not set \(loss_weights\)",
        ),
    ],
)
def test_unknown_choices(run: Run, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        run(**options)


def test_test_scans_must_be_others(run: Run, data: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="are training or validation scans too: expected others"):
        run(evaluate_on_test_scans=str(data))
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
        shutil.copy(data / folder / "val_00.nii.gz", tmp_path / folder / "renamed.nii.gz")
    with pytest.raises(SystemExit, match=r"renamed\.nii\.gz are training or validation scans too"):
        run(evaluate_on_test_scans=str(tmp_path))
