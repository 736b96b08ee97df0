"""Mistakes that newcomers make are named, with what to do."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from dbisl.data import find_cases
from dbisl.utils import InputError
from tests.data.make_scans import Study, write_scan
from tests.data.make_series import CT, write_series

SHAPE = (6, 7, 8)


@pytest.mark.parametrize("class_names", ["hippo", ["background"], ["background", "a", "a"], None])
def test_class_names_that_cannot_be_used(study: Study, class_names: Any) -> None:
    message = study.refusal(class_names=class_names)
    assert f"class_names is {class_names!r}: expected a list of at least two different names" in message


def test_a_class_that_no_label_holds_is_named(study: Study, caplog: pytest.LogCaptureFixture) -> None:
    study.check(class_names=["background", "body", "tumour"])
    (warning,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.startswith("No label holds class 2 (tumour): expected every class")
    caplog.clear()
    study.check()
    assert not [record for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.parametrize(("values", "step"), [((0, 85, 170, 255), "85"), ((0, 127, 255), "127.5")])
def test_labels_that_an_image_program_scaled(study: Study, values: tuple[int, ...], step: str) -> None:
    label = np.random.default_rng(0).choice(values, SHAPE).astype(np.uint8)
    write_scan(study.label("a"), label)
    names = ["background", "one", "two", "three"][: len(values)]
    assert f"They look like class indices times {step}" in study.refusal(class_names=names)


def test_other_wrong_values_get_no_such_hint(study: Study) -> None:
    write_scan(study.label("a"), np.random.default_rng(0).choice((0, 3, 4), SHAPE).astype(np.uint8))
    assert "look like" not in study.refusal(class_names=["background", "one", "two"])


def test_a_spacing_that_makes_far_more_voxels_is_named(study: Study, caplog: pytest.LogCaptureFixture) -> None:
    thick = np.diag([1.5, 1.5, 10.0, 1.0])
    for path in sorted((study.root / "images").iterdir()) + sorted((study.root / "labels").iterdir()):
        nib.save(nib.nifti1.Nifti1Image(np.asarray(nib.nifti1.load(path).dataobj), thick), path)
    study.check()
    (warning,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert "voxels of 1.5,1.5,10 mm (median): resampling makes 22 times as many" in warning
    assert '--spacing "[1.5,1.5,10]"' in warning
    caplog.clear()
    study.check(spacing=[1.5, 1.5, 10.0])
    assert not [record for record in caplog.records if record.levelno == logging.WARNING]


def test_dicom_for_training(tmp_path: Path) -> None:
    write_series(tmp_path / "patient" / "series", CT)
    with pytest.raises(InputError, match=r"series is a DICOM series: expected NIfTI files"):
        find_cases(tmp_path)


def test_the_folder_of_the_images_instead_of_the_one_above(study: Study) -> None:
    with pytest.raises(InputError, match=f"Expected the folder above it, {study.root}"):
        find_cases(study.root / "images")


def test_names_of_nnunet(study: Study) -> None:
    for path in sorted((study.root / "images").iterdir()):
        path.rename(path.with_name(path.name.replace(".nii.gz", "_0000.nii.gz")))
    with pytest.raises(InputError, match=r"as nnU-Net names them \(a_0000\.nii\.gz\); expected a\.nii\.gz for both"):
        find_cases(study.root)


def test_every_scan_in_the_validation_list(study: Study) -> None:
    study.image("u").unlink()
    (study.root / "val.list").write_text("a\nb\nv\n")
    with pytest.raises(InputError, match="all 3 cases are for validation: expected some labeled cases for training"):
        find_cases(study.root)


def test_one_renamed_label_is_named(study: Study, caplog: pytest.LogCaptureFixture) -> None:
    shutil.move(study.label("a"), study.label("a_new"))
    with caplog.at_level(logging.WARNING):
        assert len(find_cases(study.root).labeled) == 2
    assert "a_new.nii.gz: 1 label files have no image of the same name" in caplog.text
