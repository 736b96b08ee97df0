"""Copies of data sets whose labels are annotated in some slices only."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dbisl.data import check_cases, find_cases
from scripts.make_demo_data import make_demo_data
from scripts.make_partial_labels import make_partial_labels


def test_copy_keeps_every_fifth_slice_and_can_be_trained_on(tmp_path: Path) -> None:
    make_demo_data(str(tmp_path / "data"), num_labeled=2, num_unlabeled=1, num_validation=1, seed=0)
    make_partial_labels(str(tmp_path / "data"), str(tmp_path / "partial"), every=5)
    whole, partial = find_cases(tmp_path / "data"), find_cases(tmp_path / "partial")
    assert [len(cases) for cases in (partial.labeled, partial.unlabeled, partial.validation)] == [2, 1, 1]
    for before, after in zip(whole.labeled, partial.labeled, strict=True):
        old, new = (np.asarray(nib.load(case["label"]).dataobj) for case in (before, after))
        assert (new[..., 2::5] == old[..., 2::5]).all()
        assert (np.delete(new, np.s_[2::5], axis=2) == 255).all()
    old, new = (np.asarray(nib.load(cases.validation[0]["label"]).dataobj) for cases in (whole, partial))
    assert (old == new).all()
    lists = {"labeled": partial.labeled, "unlabeled": partial.unlabeled, "validation": partial.validation}
    options = {
        "in_channels": 1,
        "class_names": ["background", "one", "two"],
        "patch_size": [16, 16, 16],
        "patch_divisor": [8, 8, 8],
    }
    check_cases(**lists, **options, spacing=(1.0, 1.0, 1.0))
    with pytest.raises(FileExistsError):
        make_partial_labels(str(tmp_path / "data"), str(tmp_path / "partial"))


def test_a_decathlon_folder_of_uncompressed_files(tmp_path: Path) -> None:
    make_demo_data(str(tmp_path / "data"), num_labeled=2, num_unlabeled=1, num_validation=0, seed=0)
    source = tmp_path / "decathlon"
    for kind in ("images", "labels"):
        (source / f"{kind}Tr").mkdir(parents=True)
        for path in (tmp_path / "data" / kind).glob("*.nii.gz"):
            nib.save(nib.load(path), source / f"{kind}Tr" / path.name.replace(".gz", ""))
    pairs = [
        {"image": f"./imagesTr/{path.name}", "label": f"./labelsTr/{path.name}"}
        for path in sorted((source / "labelsTr").iterdir())
    ]
    (source / "dataset.json").write_text(json.dumps({"training": pairs}))
    make_partial_labels(str(source), str(tmp_path / "partial"))
    before, after = find_cases(source), find_cases(tmp_path / "partial")
    assert len(after.labeled) == len(before.labeled) == 2 and after.validation == []
    case = after.labeled[0]
    assert (np.asarray(nib.load(case["label"]).dataobj) == 255).mean() > 0.7
    assert nib.load(case["image"]).shape == nib.load(case["label"]).shape
