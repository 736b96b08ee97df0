"""The bundle's real commands, as a user types them, on a tiny data set."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.bundle.commands import TINY, Run, run_python

EVALUATE = ["configs/train.json", "configs/evaluate.json"]


def test_training_leaves_models_curves_and_a_log_of_every_term(trained: Path) -> None:
    assert sorted(path.name for path in (trained / "models").iterdir()) == [
        "checkpoint.pt",
        "model.json",
        "model.pt",
        "model_final.json",
        "model_final.pt",
    ]
    assert list((trained / "output" / "tensorboard").glob("events*"))
    log = (trained / "log.txt").read_text()
    assert "training on 2 labeled and 3 unlabeled scans" in log
    for term in ("segmentation_across", "consistency_regression", "pseudo_regression", "foreground_unlabeled"):
        assert re.search(rf"{term}: \d", log), term
    assert len(re.findall(r"epoch 2 of 2: loss \d\.\d+, validation Dice \d\.\d+ \(anterior .*\), .*0 s left", log)) == 1
    assert "Engine run" not in log
    events = EventAccumulator(str(trained / "output" / "tensorboard"), {"tensors": 0}).Reload()
    assert {"validation/01", "validation/02"} <= set(events.Tags()["images"])


def test_evaluation_writes_a_row_for_each_case_class_and_task(
    tmp_path: Path, trained: Path, demo_data: Path, run_bundle: Run
) -> None:
    done = run_bundle(
        "evaluating",
        EVALUATE,
        dataset_dir=demo_data,
        ckpt_dir=trained / "models",
        output_dir=tmp_path,
        **{"features": 4},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with (tmp_path / "cases.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 3
    assert {row["task"] for row in rows} == {"fused", "segmentation", "regression"}
    names = {path.name.removesuffix(".nii.gz") for path in (demo_data / "labels").iterdir()}
    assert {row["case"] for row in rows} <= names
    for row in rows:  # the reference is the label as it lies on disk
        label = np.asarray(nib.load(demo_data / "labels" / f"{row['case']}.nii.gz").dataobj)
        volume = np.count_nonzero(label == int(row["class_index"])) / 1000
        assert float(row["reference_ml"]) == pytest.approx(volume)
    assert (tmp_path / "summary.csv").is_file()
    dice: dict[str, list[float]] = {}
    for row in rows:
        if row["task"] == "fused" and row["dice"]:
            dice.setdefault(row["case"], []).append(float(row["dice"]))
    worst_first = sorted(dice, key=lambda case: sum(dice[case]) / len(dice[case]))
    pictures = [f"{rank:02d}_{case}.png" for rank, case in enumerate(worst_first, start=1)]
    assert sorted(path.name for path in (tmp_path / "previews").iterdir()) == pictures


def test_evaluation_of_one_decoder_has_one_task(tmp_path: Path, demo_data: Path, run_bundle: Run) -> None:
    places = {"dataset_dir": demo_data, "ckpt_dir": tmp_path, "output_dir": tmp_path}
    method = "configs/methods/supervised.yaml"
    done = run_bundle("training", ["configs/train.json", method], **places, **{**TINY, "epochs": 1})
    assert done.returncode == 0, done.stdout + done.stderr
    done = run_bundle("evaluating", ["configs/train.json", method, EVALUATE[1]], **places, features=4)
    assert done.returncode == 0, done.stdout + done.stderr
    with (tmp_path / "cases.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["task"] for row in rows] == ["segmentation"] * 2 * 2


def test_inference_writes_integers_on_each_scans_own_grid(tmp_path: Path, trained: Path, run_bundle: Run) -> None:
    """Other orientation, spacing, obliqueness and sizes, smaller and larger than the patch."""
    generator = np.random.default_rng(0)
    scans = tmp_path / "scans"
    scans.mkdir()
    oblique = np.array([[0, 1.2, 0.3, 5], [-0.9, 0, 0, 7], [0, -0.2, 2.0, -3], [0, 0, 0, 1.0]])
    grids = {"a": ((20, 31, 12), np.diag([-1.0, -1, 1, 1])), "b": ((60, 70, 30), oblique)}
    for name, (shape, affine) in grids.items():
        nib.save(nib.Nifti1Image(generator.normal(size=shape).astype(np.float32), affine), scans / f"{name}.nii.gz")
    done = run_bundle(
        "inference",
        ["configs/inference.json"],
        dataset_dir=scans,
        output_dir=tmp_path / "out",
        ckpt_path=trained / "models" / "model.pt",
        **{"features": 4},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for name, (shape, affine) in grids.items():
        segmentation = nib.load(tmp_path / "out" / f"{name}_seg.nii.gz")
        assert segmentation.shape == shape
        np.testing.assert_allclose(segmentation.affine, affine, atol=1e-5)
        assert segmentation.get_data_dtype() == np.uint8
        assert set(np.unique(np.asarray(segmentation.dataobj))) <= {0, 1, 2}


def test_resumed_training_continues(tmp_path: Path, trained: Path, demo_data: Path, run_bundle: Run) -> None:
    models = tmp_path / "models"
    shutil.copytree(trained / "models", models)
    done = run_bundle(
        "training",
        ["configs/train.json"],
        dataset_dir=demo_data,
        ckpt_dir=models,
        output_dir=tmp_path / "output",
        resume=True,
        **{**TINY, "epochs": 3},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "after epoch 2 of 3" in done.stdout
    assert "Epoch: 3/3, Iter: 2/2" in done.stdout and "Epoch: 2/3" not in done.stdout
    before, after = (torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (trained / "models", models))
    assert (before["trainer"]["iteration"], after["trainer"]["iteration"]) == (4, 6)
    # The length of the schedule is no part of the checkpoint: a longer training stretches it, and it ends at its floor.
    assert after["lr_scheduler"]["last_epoch"] == before["lr_scheduler"]["last_epoch"] + 2 == 6
    assert after["lr_scheduler"]["lr_lambdas"] == [None]
    assert after["optimizer"]["param_groups"][0]["lr"] == pytest.approx(0.005 * 0.002)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"epoch": 3}, r"--epoch overrides nothing.*epochs"),
        ({"dataset_dir": "nowhere"}, r"dataset_dir nowhere does not exist.*make_demo_data\.py"),
        ({"patch_size": "[40,50,40]"}, r"patch_size is \[40, 50, 40\]: expected a multiple of 8 on axis 1, not 50"),
        ({"amp": "false"}, r"--amp is the text 'false': expected Python's False"),
        ({"patch_size": "[16,16,16]"}, r"patch_size is 16 on axis 0.*bfloat16.*expected at least 24, or --amp False"),
        ({"num_labeled": 3}, r"num_labeled is 3, but 2 labeled training cases exist"),
        ({"class_names": "['background','body']"}, r"has label values 2: expected whole numbers from 0 to 1"),
    ],
)
def test_bad_input_is_one_sentence_and_a_failure(
    tmp_path: Path, demo_data: Path, run_bundle: Run, overrides: dict[str, str], sentence: str
) -> None:
    options = {"dataset_dir": demo_data, "ckpt_dir": tmp_path, "output_dir": tmp_path, **TINY, **overrides}
    done = run_bundle("training", ["configs/train.json"], **options)
    assert done.returncode != 0
    assert re.search(sentence, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_evaluation_and_inference_without_weights_name_the_file(
    tmp_path: Path, demo_data: Path, run_bundle: Run
) -> None:
    for run_id, files, folder in (
        ("evaluating", EVALUATE, demo_data),
        ("inference", ["configs/inference.json"], demo_data / "images"),
    ):
        done = run_bundle(run_id, files, dataset_dir=folder, ckpt_path=tmp_path / "none.pt", output_dir=tmp_path)
        assert done.returncode != 0
        assert "none.pt does not exist: expected the weights of a trained network" in done.stderr
        assert "Traceback" not in done.stderr


def test_weights_of_another_network_are_named(tmp_path: Path, trained: Path, demo_data: Path, run_bundle: Run) -> None:
    weights = trained / "models" / "model.pt"
    done = run_bundle("evaluating", EVALUATE, dataset_dir=demo_data, ckpt_path=weights, output_dir=tmp_path)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert re.search(r"model\.pt was trained with features 4, the config has 16: expected --features 4\.", done.stderr)
    copied = tmp_path / "weights.pt"  # without their recipe
    shutil.copy(weights, copied)
    done = run_bundle("evaluating", EVALUATE, dataset_dir=demo_data, ckpt_path=copied, output_dir=tmp_path)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert "weights.pt has no recipe (weights.json)" in done.stdout + done.stderr
    assert re.search(r"weights\.pt holds the weights of another network: .* expected 16 x 1 x 3 x 3 x 3", done.stderr)


@pytest.mark.parametrize("spacing", ["[1.0,1.0,3.0]", "[2.0,1.0,1.0]"])
def test_training_on_anisotropic_voxels(tmp_path: Path, demo_data: Path, run_bundle: Run, spacing: str) -> None:
    options = {"dataset_dir": demo_data, "ckpt_dir": tmp_path, "output_dir": tmp_path, **TINY, "epochs": 1}
    options |= {"spacing": spacing, "patch_size": "[24,56,24]", "log_interval": None}
    done = run_bundle("training", ["configs/train.json"], **options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("epoch 1 of 1: loss") == 1 and "Iter:" not in done.stdout
    assert (tmp_path / "model_final.pt").is_file()


def test_thick_slices_from_training_to_an_exported_network(
    root: Path, tmp_path: Path, demo_data: Path, run_bundle: Run
) -> None:
    network = {
        "features": 4,
        "spacing": "[1.0,1.0,4.0]",
        "patch_size": "[24,56,10]",
        "strides": "[[2,2,1],[2,2,1],[2,2,2]]",
        "kernel_sizes": "[[3,3,1],[3,3,1],3,3]",
    }
    places = {"dataset_dir": demo_data, "ckpt_dir": tmp_path, "output_dir": tmp_path / "output"}
    done = run_bundle("training", ["configs/train.json"], **places, **{**TINY, "epochs": 1, **network})
    assert done.returncode == 0, done.stdout + done.stderr
    done = run_bundle("evaluating", EVALUATE, **places, **network)
    assert done.returncode == 0, done.stdout + done.stderr

    exported = tmp_path / "model.ts"
    arguments = ["ckpt_export", "network_def", "--filepath", exported, "--ckpt_file", tmp_path / "model.pt"]
    arguments += ["--meta_file", "configs/metadata.json", "--config_file", "configs/inference.json"]
    arguments += [word for key, value in network.items() for word in (f"--{key}", value)]
    done = run_python(["-m", "monai.bundle", *arguments], root / "bundle")
    assert done.returncode == 0, done.stdout + done.stderr
    inference = {"dataset_dir": demo_data / "images", "amp": False, "device": "cpu", **network}
    for files, weights in ((["inference"], tmp_path / "model.pt"), (["inference", "exported"], exported)):
        configs = [f"configs/{name}.json" for name in files]
        output = tmp_path / weights.suffix
        done = run_bundle("inference", configs, ckpt_path=weights, output_dir=output, **inference)
        assert done.returncode == 0, done.stdout + done.stderr
    names = sorted(path.name for path in (tmp_path / ".pt").glob("*.nii.gz"))
    assert len(names) == len(list((demo_data / "images").iterdir()))
    for name in names:
        from_weights, from_export = (np.asarray(nib.load(tmp_path / kind / name).dataobj) for kind in (".pt", ".ts"))
        np.testing.assert_array_equal(from_weights, from_export)


def test_inference_shares_the_network_and_the_transforms_of_training(root: Path) -> None:
    train, inference = (json.loads((root / "bundle/configs" / f"{n}.json").read_text()) for n in ("train", "inference"))
    shared = set(train) & set(inference)
    assert {"network_def", "network", "image_transforms", "spacing", "patch_size", "sdm_slope", "overlap"} <= shared
    own = {
        "imports",
        "fused_output",
        "reader",
        "dataset_dir",
        "output_dir",
        "load_keys",
        "grid_keys",
        "cases",
        "initialize",
        "run",
    }
    adopted = inference["ckpt_recipe"]["otherwise"]
    assert set(adopted) == set(train["recipe"]["keys"]) and set(adopted) <= shared
    for key in {key for key in shared if not key.startswith("_")} - own:
        # What the weights' recipe decides has the default of training for weights without a recipe.
        expected = f"$@ckpt_recipe['{key}']" if key in adopted else train[key]
        assert inference[key] == expected, key
    assert adopted == {key: train[key] for key in adopted}
    windows = {key: value for key, value in inference["inferer"].items() if key not in ("fused", "flips")}
    assert windows == train["validate"]["inferer"]


def test_training_without_any_label_where_that_is_said(tmp_path: Path, demo_data: Path, run_bundle: Run) -> None:
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "images").symlink_to(demo_data / "images")
    places = {"dataset_dir": tmp_path / "scans", "ckpt_dir": tmp_path, "output_dir": tmp_path}
    options = {**places, **TINY, "epochs": 1, "patch_size": "[24,24,24]"}
    done = run_bundle("training", ["configs/train.json"], **options)
    assert done.returncode != 0 and "found no label among" in done.stderr
    done = run_bundle("training", ["configs/train.json", "configs/no_labels.json"], **options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "training uses the unlabeled loss terms only" in done.stdout + done.stderr
    assert (tmp_path / "model_final.pt").is_file()
