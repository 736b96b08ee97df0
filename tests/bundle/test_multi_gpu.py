"""Training by torchrun on two processes, over gloo on the CPU."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from scripts.make_demo_data import make_demo_data
from tests.bundle.commands import TINY, Run

TRAIN = ["configs/train.json"]
MULTI_GPU = [*TRAIN, "configs/multi_gpu_train.json"]
SHORT = {**TINY, "device": "cpu", "patch_size": "[24,32,24]", "warm_up": 0, "min_dice": 0, "ramp_up": 0}
LOGGERS = {"StatsHandler", "TensorBoardStatsHandler", "Previews", "Progress"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scans of which neither stream, nor the validation, divides by two."""
    folder = tmp_path_factory.mktemp("odd") / "data"
    make_demo_data(str(folder), num_labeled=3, num_unlabeled=5, num_validation=3)
    return folder


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two_processes")


@pytest.fixture(scope="module")
def log(run_dir: Path, data: Path, run_bundle: Run) -> str:
    """Of a finished training on two processes, in ``run_dir``."""
    done: subprocess.CompletedProcess[str] = run_bundle(
        "training",
        MULTI_GPU,
        processes=2,
        dataset_dir=data,
        ckpt_dir=run_dir / "models",
        output_dir=run_dir / "output",
        **{**SHORT, "iterations_per_epoch": 6, "learning_rate": 0.02},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_one_process_writes_and_logs(run_dir: Path, log: str) -> None:
    assert sorted(path.name for path in (run_dir / "models").iterdir()) == [
        "checkpoint.pt",
        "model.json",
        "model.pt",
        "model_final.json",
        "model_final.pt",
    ]
    writers = {path.name.split(".")[-2] for path in (run_dir / "output" / "tensorboard").glob("events*")}
    assert len(writers) == 1, "the part of the name before the last is the process"
    for line in ("training on 3 labeled and 5 unlabeled scans", "Epoch: 2/2, Iter: 6/6", "epoch 2 of 2: loss"):
        assert log.count(line) == 1, line
    assert re.search(r"pseudo_segmentation_across: \d", log)


def test_gathered_validation_is_that_of_one_process(
    tmp_path: Path, run_dir: Path, log: str, data: Path, run_bundle: Run
) -> None:
    options = {key: SHORT[key] for key in ("features", "patch_size", "device")}
    done = run_bundle(
        "evaluating",
        [*TRAIN, "configs/evaluate.json"],
        dataset_dir=data,
        ckpt_dir=run_dir / "models",
        output_dir=tmp_path,
        **options,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with (tmp_path / "cases.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["task"] == "fused"]
    dice = torch.tensor([float(row["dice"]) for row in rows]).view(3, 2).mean(dim=1)
    assert dice.std() > 0.002  # a case that counted twice would show
    best = torch.load(run_dir / "models" / "checkpoint.pt", weights_only=True)["trainer"]["best_score"]
    assert best == pytest.approx(float(dice.mean()), abs=1e-4)


def test_one_process_resumes_what_two_began(
    tmp_path: Path, run_dir: Path, log: str, data: Path, run_bundle: Run
) -> None:
    shutil.copytree(run_dir / "models", tmp_path / "models")
    done = run_bundle(
        "training",
        TRAIN,
        dataset_dir=data,
        ckpt_dir=tmp_path / "models",
        output_dir=tmp_path / "output",
        resume=True,
        **{**SHORT, "iterations_per_epoch": 6, "epochs": 3},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "after epoch 2 of 3" in done.stdout and "Epoch: 3/3, Iter: 6/6" in done.stdout


def test_bad_input_is_said_once_and_ends_every_process(tmp_path: Path, run_bundle: Run) -> None:
    options = {"dataset_dir": "nowhere", "ckpt_dir": tmp_path, "output_dir": tmp_path, **SHORT}
    done = run_bundle("training", MULTI_GPU, processes=2, **options)
    assert done.returncode != 0
    assert done.stderr.count("dataset_dir nowhere does not exist") == 1
    assert not list(tmp_path.iterdir())


def test_without_torchrun_the_sentence_names_it(tmp_path: Path, data: Path, run_bundle: Run) -> None:
    done = run_bundle("training", MULTI_GPU, dataset_dir=data, ckpt_dir=tmp_path, output_dir=tmp_path, **SHORT)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert "start them by `torchrun --nproc_per_node=N -m monai.bundle run training" in done.stderr


def test_every_handler_that_writes_is_left_out_on_other_processes(root: Path) -> None:
    train = json.loads((root / "bundle/configs/train.json").read_text())
    for handler in (*train["train"]["handlers"], *train["validate"]["handlers"]):
        name = handler["_target_"].split(".")[-1]
        assert ("@rank > 0" in str(handler.get("_disabled_"))) == (name in LOGGERS), name
