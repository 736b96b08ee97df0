"""Folds are trained, evaluated and combined by the real commands, and any labeled folder can be evaluated."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.bundle.commands import TINY, Run

EVALUATE = ["configs/train.json", "configs/evaluate.json"]
MAPS = ["configs/inference.json", "configs/maps.json"]


@pytest.fixture(scope="module")
def folds(tmp_path_factory: pytest.TempPathFactory, demo_data: Path, run_bundle: Run) -> list[Path]:
    """The weights of two folds over the two labeled scans."""
    weights = []
    for fold in range(2):
        folder = tmp_path_factory.mktemp(f"fold{fold}")
        done = run_bundle(
            "training",
            ["configs/train.json"],
            dataset_dir=demo_data,
            ckpt_dir=folder,
            output_dir=folder / "output",
            num_folds=2,
            fold=fold,
            **{**TINY, "epochs": 1, "seed": fold},
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"1 labeled, 3 unlabeled and 1 validation cases (validation: fold {fold} of 2" in done.stdout
        weights.append(folder / "model.pt")
    return weights


def listed(paths: list[Path]) -> str:
    """A list of files as it is typed."""
    return str([str(path) for path in paths])


def scored(folder: Path) -> set[str]:
    with (folder / "cases.csv").open() as file:
        return {row["case"] for row in csv.DictReader(file)}


def cases_of(folder: Path, name: str) -> set[str]:
    return set((folder / name).read_text().split())


def test_an_ensemble_is_evaluated_on_scans_that_no_fold_saw(
    tmp_path: Path, folds: list[Path], demo_data: Path, run_bundle: Run
) -> None:
    options = {"dataset_dir": demo_data, "output_dir": tmp_path, "features": 4}
    done = run_bundle("evaluating", EVALUATE, ckpt_path=listed(folds), **options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert scored(tmp_path) == cases_of(demo_data, "val.list")
    assert "was trained on" not in done.stdout


def test_a_fold_is_evaluated_on_its_part(tmp_path: Path, folds: list[Path], demo_data: Path, run_bundle: Run) -> None:
    for fold, weights in enumerate(folds):
        options = {"dataset_dir": demo_data, "ckpt_dir": weights.parent, "output_dir": tmp_path / str(fold)}
        done = run_bundle("evaluating", EVALUATE, num_folds=2, fold=fold, features=4, **options)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "was trained on" not in done.stdout
    parts = [scored(tmp_path / str(fold)) for fold in range(2)]
    assert [len(part) for part in parts] == [1, 1] and not parts[0] & parts[1]


def test_any_folder_is_evaluated_whole_and_training_scans_are_counted(
    tmp_path: Path, folds: list[Path], demo_data: Path, run_bundle: Run
) -> None:
    options = {"dataset_dir": tmp_path / "none", "output_dir": tmp_path, "features": 4, "max_previews": 0}
    done = run_bundle("evaluating", EVALUATE, scans=demo_data, ckpt_path=listed(folds), **options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert scored(tmp_path) == {path.name.removesuffix(".nii.gz") for path in (demo_data / "labels").iterdir()}
    for weights in folds:
        assert f"WARNING - {weights} was trained on 1 of the 4 scans" in done.stdout


def test_the_maps_of_an_ensemble_are_the_mean_of_its_members_maps(
    tmp_path: Path, folds: list[Path], demo_data: Path, run_bundle: Run
) -> None:
    scan = sorted((demo_data / "images").iterdir())[0]
    options = {"dataset_dir": scan, "features": 4, "amp": False, "maps": "['probability','sdm']"}
    for name, weights in (("0", folds[0]), ("1", folds[1]), ("both", listed(folds)), ("same", listed(folds[:1]))):
        done = run_bundle("inference", MAPS, ckpt_path=weights, output_dir=tmp_path / name, **options)
        assert done.returncode == 0, done.stdout + done.stderr
    for kind in ("probability", "sdm"):
        (file,) = (tmp_path / "both").glob(f"*_{kind}.nii.gz")
        zero, one, both, same = (
            np.asarray(nib.load(tmp_path / name / file.name).dataobj, np.float32) for name in ("0", "1", "both", "same")
        )
        assert np.abs(zero - one).max() > 1e-3
        np.testing.assert_allclose(both, (zero + one) / 2, atol=2e-3 * np.abs(both).max())  # maps are half floats
        np.testing.assert_array_equal(same, zero)


@pytest.mark.parametrize(
    ("run_id", "files", "overrides", "sentence"),
    [
        ("training", ["configs/train.json"], {"group": "([0-9]+)"}, r"val\.list\): the group 00 is split: .*neither"),
        ("training", ["configs/train.json"], {"num_folds": 3, "fold": 0}, r"num_folds is 3, but .* 2 groups"),
        ("evaluating", EVALUATE, {"scans": "nowhere"}, r"scans nowhere does not exist"),
        ("evaluating", EVALUATE, {"ckpt_path": "['a.pt','b.pt']"}, r"a\.pt does not exist: expected the weights"),
        (
            "inference",
            ["configs/inference.json", "configs/exported.json"],
            {"ckpt_path": "['a.ts','b.ts']"},
            r"ckpt_path is a list of 2 files: expected one file for an exported network",
        ),
    ],
)
def test_bad_choices_are_one_sentence_and_a_failure(
    tmp_path: Path, demo_data: Path, run_bundle: Run, run_id: str, files: list[str], overrides: dict, sentence: str
) -> None:
    folder = demo_data / "images" if run_id == "inference" else demo_data
    options = {"dataset_dir": folder, "output_dir": tmp_path, **overrides}
    if run_id == "training":
        options |= {"ckpt_dir": tmp_path, **TINY}
    done = run_bundle(run_id, files, **options)
    assert done.returncode != 0
    assert re.search(sentence, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
