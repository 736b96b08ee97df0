"""The commands on real scans of the left atrium, trained for a moment: what comes out lies on the scans' own grids."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.bundle.commands import TINY, Run

ATRIUM = "configs/datasets/la_1.25mm.yaml"


@pytest.mark.realdata
def test_left_atrium_from_training_to_segmentation(tmp_path: Path, shared_data: Path, run_bundle: Run) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    for name in ("images", "labels"):
        (scans / name).symlink_to(shared_data / "la" / name)
    names = {split: (shared_data / "la" / f"{split}.list").read_text().split() for split in ("train", "val")}
    (scans / "train.list").write_text("\n".join(names["train"][:10]))
    (scans / "val.list").write_text("\n".join(names["val"][:2]))
    one = names["val"][0]
    (tmp_path / "unseen").mkdir()
    (tmp_path / "unseen" / f"{one}.nii.gz").symlink_to(shared_data / "la" / "images" / f"{one}.nii.gz")

    places = {"dataset_dir": scans, "ckpt_dir": tmp_path / "models", "output_dir": tmp_path / "output"}
    features = {"features": 4}
    done = run_bundle("training", ["configs/train.json", ATRIUM], **places, **TINY)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "training on 8 labeled and 2 unlabeled scans" in done.stdout
    done = run_bundle("evaluating", ["configs/train.json", ATRIUM, "configs/evaluate.json"], **places, **features)
    assert done.returncode == 0, done.stdout + done.stderr
    done = run_bundle(
        "inference",
        ["configs/inference.json", ATRIUM],
        dataset_dir=tmp_path / "unseen",
        output_dir=tmp_path / "segmentations",
        ckpt_path=tmp_path / "models" / "model.pt",
        **features,
    )
    assert done.returncode == 0, done.stdout + done.stderr

    with (tmp_path / "output" / "cases.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["task"] == "fused"]
    assert [row["case"] for row in rows] == names["val"][:2]
    for row in rows:
        label = nib.load(scans / "labels" / f"{row['case']}.nii.gz")
        volume = np.count_nonzero(np.asarray(label.dataobj)) * 0.625**3 / 1000
        assert float(row["reference_ml"]) == pytest.approx(volume, rel=1e-4)
    image = nib.load(shared_data / "la" / "images" / f"{one}.nii.gz")
    segmentation = nib.load(tmp_path / "segmentations" / f"{one}_seg.nii.gz")
    assert segmentation.shape == image.shape
    np.testing.assert_allclose(segmentation.affine, image.affine, atol=1e-5)
    assert segmentation.get_data_dtype() == np.uint8
