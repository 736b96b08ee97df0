"""Weights carry their recipe from training to inference: names, spacing, and a warning for scans unlike the others."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigParser

from dbisl.engines import ScanScores
from dbisl.utils import InputError, check_recipe
from tests.bundle.commands import TINY, Run

HEART = {
    "class_names": "['background','ventricle','muscle']",
    "spacing": "[1.5,1.5,3.0]",
    "patch_size": "[24,24,10]",
    "sdm_band": 7.5,
    "strides": "[[2,2,1],[2,2,1],[2,2,2]]",
}


@pytest.fixture(scope="module")
def heart(tmp_path_factory: pytest.TempPathFactory, demo_data: Path, run_bundle: Run) -> Path:
    """Weights of other structures at another spacing, from a training of one epoch."""
    folder = tmp_path_factory.mktemp("heart")
    places = {"dataset_dir": demo_data, "ckpt_dir": folder, "output_dir": folder / "output"}
    done = run_bundle("training", ["configs/train.json"], **places, **{**TINY, "epochs": 1, **HEART})
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "model.pt"


def test_training_writes_what_it_did(heart: Path, demo_data: Path) -> None:
    recipe = json.loads(heart.with_suffix(".json").read_text())["recipe"]
    assert recipe["class_names"] == ["background", "ventricle", "muscle"] and recipe["spacing"] == [1.5, 1.5, 3.0]
    assert recipe["network"]["name"] == "DualTaskVNet" and recipe["network"]["strides"][0] == [2, 2, 1]
    assert recipe["orientation"] == "RAS" and recipe["intensity"][0]["upper"] == 99.5
    scans = recipe["scans"]
    images = {path.name for path in (demo_data / "images").iterdir()}
    assert {*scans["labeled"].values(), *scans["unlabeled"].values()} <= images
    assert (len(scans["labeled"]), len(scans["unlabeled"]), scans["measured"]) == (2, 3, 5)
    assert str(demo_data) not in json.dumps(recipe)


def test_inference_answers_with_what_the_weights_were_trained_for(
    tmp_path: Path, heart: Path, demo_data: Path, run_bundle: Run
) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    source = nib.nifti1.load(sorted((demo_data / "images").iterdir())[0])
    voxels = np.asarray(source.dataobj, dtype=np.float32)
    nib.save(nib.nifti1.Nifti1Image(voxels, source.affine), scans / "alike.nii.gz")
    nib.save(nib.nifti1.Nifti1Image(voxels, source.affine @ np.diag([1, 1, 5, 1])), scans / "thick.nii.gz")
    nib.save(nib.nifti1.Nifti1Image(voxels * 100, source.affine), scans / "bright.nii.gz")
    options = {"dataset_dir": scans, "ckpt_path": heart, "output_dir": tmp_path / "out", "device": "cpu"}
    done = run_bundle("inference", ["configs/inference.json"], **options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "has no recipe" not in done.stdout + done.stderr
    with (tmp_path / "out" / "report.csv").open(newline="") as file:
        rows = {Path(row["case"]).name: row for row in csv.DictReader(file)}
    assert {name for name in rows["alike.nii.gz"] if name.endswith("(ml)")} == {"ventricle (ml)", "muscle (ml)"}
    assert {row["status"] for row in rows.values()} == {"segmented"}
    assert rows["alike.nii.gz"]["warning"] == ""
    assert "voxels of 1, 1, 5 mm" in rows["thick.nii.gz"]["warning"]
    assert "intensities of" in rows["bright.nii.gz"]["warning"] and "mm" not in rows["bright.nii.gz"]["warning"]
    assert "bright.nii.gz is unlike the training scans: intensities of" in done.stdout + done.stderr


def test_a_config_of_other_structures_is_refused(tmp_path: Path, heart: Path, demo_data: Path, run_bundle: Run) -> None:
    places = {"ckpt_path": heart, "output_dir": tmp_path, "device": "cpu"}
    names = "['background','anterior hippocampus','posterior hippocampus']"
    for run_id, files, options in (
        ("inference", ["configs/inference.json"], {"dataset_dir": demo_data / "images", "class_names": names}),
        ("evaluating", ["configs/train.json", "configs/evaluate.json"], {"dataset_dir": demo_data, "features": 4}),
    ):
        done = run_bundle(run_id, files, **places, **options)
        assert done.returncode != 0 and "Traceback" not in done.stderr
        lines = [line for line in done.stderr.splitlines() if "was trained with" in line]
        assert "expected --class_names \"['background', 'ventricle', 'muscle']\"." in lines[0]
        keys = [line.split("was trained with ")[1].split()[0] for line in lines]
        assert keys == (["class_names"] if run_id == "inference" else ["class_names", "spacing", "sdm_band", "strides"])
    assert not list(tmp_path.glob("*.nii.gz"))


def test_an_evaluation_with_the_keys_of_the_training(
    tmp_path: Path, heart: Path, demo_data: Path, run_bundle: Run
) -> None:
    files = ["configs/train.json", "configs/evaluate.json"]
    options = {"dataset_dir": demo_data, "ckpt_path": heart, "output_dir": tmp_path, "features": 4, **HEART}
    done = run_bundle("evaluating", files, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    with (tmp_path / "summary.csv").open(newline="") as file:
        assert {row["class_name"] for row in csv.DictReader(file)} == {"ventricle", "muscle", "mean"}


def test_scores_of_a_scan_take_the_recipe_of_the_weights(root: Path, heart: Path, demo_data: Path) -> None:
    scores = ScanScores(root / "bundle", heart)
    assert scores.network.divisor == [8, 8, 2]
    values = scores(sorted((demo_data / "images").iterdir())[0])
    assert set(values) == {"disagreement", "entropy"} and all(np.isfinite(list(values.values())))


def test_the_weights_that_ship_have_the_recipe_of_the_defaults(root: Path, tmp_path: Path) -> None:
    weights = root / "bundle" / "models" / "model.pt"
    record = json.loads(weights.with_suffix(".json").read_text())
    parser = ConfigParser()
    parser.read_config(root / "bundle" / "configs" / "train.json")
    check_recipe(weights, parser.get_parsed_content("recipe"))
    assert (len(record["recipe"]["scans"]["labeled"]), len(record["recipe"]["scans"]["unlabeled"])) == (8, 142)
    for path in (weights, weights.with_suffix(".json")):
        shutil.copy(path, tmp_path)
    parser["spacing"] = [0.5, 0.5, 0.5]
    parser.parse(reset=True)
    with pytest.raises(InputError, match=r"with spacing \[1.0, 1.0, 1.0\], the config has \[0.5, 0.5, 0.5\]"):
        check_recipe(tmp_path / "model.pt", parser.get_parsed_content("recipe"))
