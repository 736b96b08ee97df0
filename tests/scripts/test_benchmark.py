"""The comparison of methods: real cells, started, stopped and started again; its statistics against scipy's."""

from __future__ import annotations

import csv
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import bootstrap

from scripts.benchmark import CellError, benchmark, case_means, foreground_found, paired_difference, run_bundle
from scripts.make_demo_data import make_demo_data

TINY = {"network_def#features": 4, "epochs": 2, "iterations_per_epoch": 1, "val_interval": 2}
Run = Callable[..., None]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "data"
    make_demo_data(str(folder), num_labeled=3, num_unlabeled=2, num_validation=2)
    return folder


@pytest.fixture
def run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def call(**options: Any) -> None:
        common = {"methods": ["supervised", "dbisl"], "labels": 2, "seeds": 0, "overrides": TINY, "jobs": 2}
        benchmark(str(data), str(tmp_path / "out"), **{**common, **options})

    return call


def test_cells_run_once_resume_and_are_reported(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(methods=["supervised", "dbisl", "dbisl"], labels=[2, 2])
    out = tmp_path / "out"
    with (out / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["method"], row["labels"], row["seed"]) for row in rows} == {
        ("supervised", "2", "0"),
        ("dbisl", "2", "0"),
    }
    assert {row["case"] for row in rows} == {"val_00", "val_01"}
    table = (out / "table.md").read_text()
    assert "2 validation scans; the last checkpoint" in table and "TEST" not in table
    assert "| 2 | supervised | segmentation | 1 |" in table and "| 2 | dbisl | fused | 1 |" in table
    assert (out / "label_efficiency.png").read_bytes().startswith(b"\x89PNG")

    # As if one cell had been killed after its last epoch; the other must be left alone.
    finished, killed = out / "cells" / "supervised-2-0", out / "cells" / "dbisl-2-0"
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*.pt")}
    (killed / "model_final.pt").unlink()
    shutil.rmtree(killed / "validation-last")
    run()
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*.pt")} == before
    assert "resumed" in (killed / "training.log").read_text()
    assert (killed / "model_final.pt").is_file() and (killed / "validation-last" / "cases.csv").is_file()

    # Another question must not get the old answer, and nothing of the old one is touched.
    capsys.readouterr()
    table = (out / "table.md").read_text()
    with pytest.raises(SystemExit, match="run with another overrides: expected the same, or an empty folder"):
        run(overrides={**TINY, "learning_rate": 0.1})
    with pytest.raises(SystemExit, match=r"no finished cell of this comparison: .* run with another overrides"):
        run(overrides={**TINY, "learning_rate": 0.1}, report_only=True)
    assert (out / "table.md").read_text() == table
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*.pt")} == before


def test_best_checkpoint_and_the_last_look_at_test_scans(data: Path, run: Run, tmp_path: Path) -> None:
    # Two data sets may number their scans alike.
    unseen = tmp_path / "unseen"
    for folder in ("images", "labels"):
        shutil.copytree(data / "unseen" / folder, unseen / folder)
        (unseen / folder / "unseen_00.nii.gz").rename(unseen / folder / "val_00.nii.gz")
    run(methods="supervised", checkpoint="best", evaluate_on_test_scans=str(unseen))
    out = tmp_path / "out"
    table = (out / "table.md").read_text()
    assert "3 TEST scans; the checkpoint that is best on the validation scans" in table
    with (out / "results.csv").open(newline="") as file:
        assert {row["case"] for row in csv.DictReader(file)} == {"val_00", "unseen_01", "unseen_02"}
    assert not list(out.rglob("validation-*"))


def test_stopped_training_goes_on_where_it_was(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "out" / "cells" / "supervised-2-0"

    def killed(run_id: str, files: Any, options: Any, *arguments: Any) -> None:
        run_bundle(run_id, files, {**options, "epochs": 1}, *arguments)
        (folder / "model_final.pt").unlink()
        raise CellError("killed")

    with monkeypatch.context() as patch:
        patch.setattr("scripts.benchmark.run_bundle", killed)
        with pytest.raises(SystemExit, match="killed"):
            run(methods="supervised")
    run(methods="supervised")
    assert "after epoch 1 of 2" in (folder / "training.log").read_text()
    assert (folder / "validation-last" / "cases.csv").is_file()


def test_stopped_it_leaves_no_training_behind(data: Path, root: Path, tmp_path: Path) -> None:
    command = [sys.executable, "scripts/benchmark.py", f"--dataset_dir={data}", f"--output_dir={tmp_path / 'out'}"]
    command += [
        "--methods=supervised",
        "--labels=2",
        "--seeds=[0,1]",
        "--jobs=1",
        f"--overrides={ {**TINY, 'epochs': 10_000} }",
    ]
    paths = os.pathsep.join([str(root), str(root / "bundle")])
    process = subprocess.Popen(command, cwd=root, env={**os.environ, "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""})
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
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]  # the one that waited was not begun


def test_results_are_those_of_the_scans_wherever_they_lie(
    run: Run, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(methods="supervised")
    moved = Path(shutil.copytree(data, tmp_path / "elsewhere"))
    common = {"methods": ["supervised", "dbisl"], "labels": 2, "seeds": 0, "overrides": TINY, "report_only": True}
    capsys.readouterr()
    benchmark(str(moved), str(tmp_path / "out"), **common)
    printed = capsys.readouterr().out
    assert "dbisl-2-0 is left out: it was not run" in printed and "| 2 | supervised | segmentation | 1 |" in printed
    assert "each training of 2 epochs of 1 iterations" in printed
    labels = sorted((moved / "labels").iterdir())
    shutil.copy(labels[1], labels[0])
    with pytest.raises(SystemExit, match=r"no finished cell .* supervised-2-0 is left out: .* another scans"):
        benchmark(str(moved), str(tmp_path / "out"), **common)


def test_a_folder_is_trained_in_by_one_at_a_time(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "out" / "cells" / "supervised-2-0"
    folder.mkdir(parents=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(SystemExit, match="supervised-2-0 is in use: expected no other benchmark or training in it"):
            run(methods="supervised")
    assert not (folder / "training.log").exists()


def test_failing_cell_is_named_with_its_reason(run: Run, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        run(methods="supervised", overrides={"learning_rat": 0.1})
    message = str(caught.value)
    assert message.startswith("supervised-2-0 failed: training ended with code 1") and "learning_rat" in message
    assert not (tmp_path / "out" / "results.csv").exists()
    run(methods="supervised")  # what never began is no answer to another question


def test_gpus_are_those_that_the_caller_may_see(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def record(*arguments: Any) -> None:
        seen.append(arguments[4]["CUDA_VISIBLE_DEVICES"])
        raise CellError("seen")

    monkeypatch.setattr("scripts.benchmark.run_bundle", record)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,MIG-a,-1,5")
    with pytest.raises(SystemExit, match="seen"):
        run(jobs=None)
    assert set(seen) <= {"3", "MIG-a"} and len(seen) == 2


def test_threads_are_shared_unless_their_number_is_given(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def record(*arguments: Any) -> None:
        seen.append(arguments[4]["OMP_NUM_THREADS"])
        raise CellError("seen")

    monkeypatch.setattr("scripts.benchmark.run_bundle", record)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    for given in (None, "3"):
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        if given:
            monkeypatch.setenv("OMP_NUM_THREADS", given)
        with pytest.raises(SystemExit, match="seen"):
            run()
    assert seen == ["4", "4", "3", "3"]


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
        ({"config_file": "nothing.yaml"}, r"config_file .*nothing\.yaml is no file"),
        ({"overrides": [1]}, r"overrides is \[1\]: expected keys of the config with their values"),
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


def test_interval_is_that_of_a_bootstrap_over_cases() -> None:
    random = np.random.default_rng(0)
    names = [f"case {index}" for index in range(40)]
    theirs = {seed: dict(zip(names, random.normal(0.8, 0.05, 40), strict=True)) for seed in (0, 1)}
    gains = random.normal(0.02, 0.03, (2, 40))
    ours = {seed: {n: v + g for (n, v), g in zip(theirs[seed].items(), gains[seed], strict=True)} for seed in (0, 1)}
    ours[2] = theirs[0]  # a seed that only one of them has does not count
    difference = paired_difference(ours, theirs)
    assert difference is not None
    expected = bootstrap((gains.mean(axis=0),), np.mean, method="percentile", n_resamples=20_000, rng=random)
    np.testing.assert_allclose(difference[0], gains.mean(), rtol=1e-9)
    np.testing.assert_allclose(difference[1:], expected.confidence_interval, atol=5e-4)
    assert paired_difference({0: {"a": 1.0}}, {1: {"a": 1.0}}) is None


def test_foreground_is_of_the_last_epoch(tmp_path: Path) -> None:
    line = "2026-11-23 - INFO - Epoch: {}/3, Iter: 20/40 -- dice: 0.9 {}loss: 0.3 ramp: 1.0000 \n"
    fractions = "foreground_labeled: {} foreground_unlabeled: {} "
    log = tmp_path / "training.log"
    log.write_text(
        line.format(1, fractions.format("0.0300", "0.0001"))
        + line.format(3, fractions.format("0.0300", "0.0200"))
        + line.format(3, fractions.format("0.0100", "1.0000e-02"))
    )
    assert foreground_found(log) == pytest.approx(0.75)
    log.write_text(line.format(3, "foreground_labeled: 0.0300 "))
    assert foreground_found(log) is None


def test_mean_over_the_classes_of_a_case_leaves_out_what_is_undefined() -> None:
    rows = [
        {"case": "a", "hd95_mm": "1.0"},
        {"case": "a", "hd95_mm": "3.0"},
        {"case": "b", "hd95_mm": ""},
        {"case": "b", "hd95_mm": "5.0"},
        {"case": "c", "hd95_mm": ""},
    ]
    assert case_means(rows, "hd95_mm") == {"a": 2.0, "b": 5.0}
