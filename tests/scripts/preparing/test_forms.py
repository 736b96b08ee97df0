"""Each form of data set becomes the folder that training reads, with the voxels in their place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import nrrd
import numpy as np
import pytest

from dbisl.data import find_cases
from dbisl.utils import InputError
from scripts.prepare import prepare
from tests.scripts.preparing.sources import (
    AFFINE,
    SHAPE,
    brats,
    check,
    image,
    label,
    nnunet,
    record,
    voxels_of,
    write,
    write_hdf5,
)


def test_nnunet_raw(tmp_path: Path) -> None:
    source = nnunet(tmp_path / "raw", {"background": 0, "tumor": 2, "organ": 1, "ignore": 3}, (1, 2, 3))
    output = tmp_path / "data"
    prepare(str(source), str(output))
    check(output, 1, 1, classes=3, channels=2)
    both = voxels_of(output / "images" / "b.nii.gz")
    assert (both[..., 0] == image(0)).all() and (both[..., 1] == image(1)).all()
    assert (voxels_of(output / "labels" / "a.nii.gz") == label(1, 2, 255)).all()
    assert record(output)["labels"] == {"background": 0, "organ": 1, "tumor": 2}
    assert record(output)["channel_names"] == {"0": "T1", "1": "T2"}
    assert not (output / "train.list").exists()


def test_nnunet_with_overlapping_regions_and_one_channel(tmp_path: Path) -> None:
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}
    output = tmp_path / "data"
    prepare(str(nnunet(tmp_path / "raw", labels, (1, 2, 3))), str(output), channels="T2")
    check(output, 1, 1, classes=4)
    assert (voxels_of(output / "images" / "a.nii.gz") == image(1)).all()
    assert record(output)["labels"] == {"background": 0, "label 1": 1, "label 2": 2, "enhancing": 3}
    assert record(output)["regions"] == {"whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]}


def test_nnunet_without_description_counts_the_labels(tmp_path: Path) -> None:
    source = nnunet(tmp_path / "raw", {}, (85, 170))
    (source / "dataset.json").unlink()
    prepare(str(source), str(tmp_path / "data"))
    check(tmp_path / "data", 1, 1, classes=3, channels=2)
    assert record(tmp_path / "data")["source_values"] == {"label 85": [85], "label 170": [170]}
    assert (voxels_of(tmp_path / "data" / "labels" / "a.nii.gz") == label(1, 2)).all()


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        (
            "labels",
            {"background": 0, "organ": "one"},
            "gives the label 'organ' the value 'one': expected a whole number",
        ),
        ("labels", ["background", "organ"], "expected their names and numbers."),
        ("channel_names", ["T1", "T2"], "expected their names by number, from 0."),
    ],
)
def test_a_description_that_says_nothing(tmp_path: Path, key: str, value: Any, expected: str) -> None:
    source = nnunet(tmp_path / "raw", {"background": 0, "organ": 1}, (1,))
    content = {**json.loads((source / "dataset.json").read_text()), key: value}
    (source / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"dataset\.json") as caught:
        prepare(str(source), str(tmp_path / "data"))
    assert expected in str(caught.value) and not (tmp_path / "data").exists()


def test_decathlon(tmp_path: Path) -> None:
    source = tmp_path / "Task01"
    for case in ("x", "y"):
        write(source / "imagesTr" / f"{case}.nii.gz", image(shape=(*SHAPE, 4)))
        (source / "imagesTr" / f"._{case}.nii.gz").touch()  # macOS left these in the archives
        write(source / "labelsTr" / f"{case}.nii.gz", label(1, 2).astype(float))
    modality = {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}
    described = {"modality": modality, "labels": {"0": "background", "1": "edema", "2": "tumor"}}
    (source / "dataset.json").write_text(json.dumps(described))
    prepare(str(source), str(tmp_path / "all"))
    check(tmp_path / "all", 2, classes=3, channels=4)
    prepare(str(source), str(tmp_path / "two"), channels=["t1gd", "FLAIR"])
    chosen = voxels_of(tmp_path / "two" / "images" / "x.nii.gz")
    assert (chosen == image(shape=(*SHAPE, 4))[..., [2, 0]]).all()


def test_left_atrium_challenge(tmp_path: Path) -> None:
    source = tmp_path / "Training Set"
    header = {"space": "left-posterior-superior", "space origin": [-12.0, -30.0, -5.0]}
    header["space directions"] = np.diag([0.8, 0.7, 2.0])
    for case in ("A1", "B2"):
        (source / case).mkdir(parents=True)
        nrrd.write(str(source / case / "lgemri.nrrd"), image(), header)
    nrrd.write(str(source / "A1" / "laendo.nrrd"), label(255), header)
    prepare(str(source), str(tmp_path / "data"))
    check(tmp_path / "data", 1, 1)
    written = nib.load(tmp_path / "data" / "images" / "A1.nii.gz")
    np.testing.assert_allclose(written.affine, AFFINE, atol=1e-6)
    assert (np.asarray(written.dataobj) == image()).all()
    assert (voxels_of(tmp_path / "data" / "labels" / "A1.nii.gz") == label(1)).all()


def test_test_scans_of_the_left_atrium_challenge_stay_apart(tmp_path: Path) -> None:
    for folder in ("Training Set/A1", "Testing Set/B2"):
        (tmp_path / "LA" / folder).mkdir(parents=True)
        for name, voxels in (("lgemri.nrrd", image()), ("laendo.nrrd", label(255))):
            header = {"space": "left-posterior-superior", "space directions": np.eye(3)}
            nrrd.write(str(tmp_path / "LA" / folder / name), voxels, header)
    prepare(str(tmp_path / "LA"), str(tmp_path / "data"))
    assert [path.name for path in (tmp_path / "data" / "images").iterdir()] == ["A1.nii.gz"]


def test_hdf5_files_of_one_name_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("a", "b"):
        for name in ("x", "y"):
            write_hdf5(tmp_path / "source" / folder / f"{name}.h5")
    with pytest.raises(SystemExit):
        prepare(str(tmp_path / "source"), str(tmp_path / "data"), spacing=[1.0, 1.0, 1.0])
    assert "x: An earlier case has the same name" in capsys.readouterr().err


def test_decathlon_names_may_end_in_four_digits(tmp_path: Path) -> None:
    for case in ("amos_0001", "amos_0004"):
        write(tmp_path / "source" / "imagesTr" / f"{case}.nii.gz", image())
        write(tmp_path / "source" / "labelsTr" / f"{case}.nii.gz", label(1))
    prepare(str(tmp_path / "source"), str(tmp_path / "data"))
    check(tmp_path / "data", 2)
    for folder in ("images", "labels"):
        written = sorted(path.name for path in (tmp_path / "data" / folder).iterdir())
        assert written == ["amos_0001.nii.gz", "amos_0004.nii.gz"]


def test_hdf5_with_the_lists_of_the_literature(tmp_path: Path) -> None:
    source = tmp_path / "BraTS2019"
    for index, case in enumerate(("c1", "c2", "c3", "c4_norm")):
        write_hdf5(source / "data" / f"{case}.h5", index)
    for name, text in {"train.txt": "c3\nc1\n", "val.txt": "c4.h5\n", "test.txt": "c2\nelsewhere\n"}.items():
        (source / name).write_text(text)
    with pytest.raises(InputError, match="does not hold the size of a voxel: expected --spacing"):
        prepare(str(source), str(tmp_path / "data"))
    prepare(str(source), str(tmp_path / "data"), spacing=[1.0, 1.0, 2.0])
    cases = find_cases(tmp_path / "data")
    assert [Path(case["image"]).name for case in cases.labeled] == ["c3.nii.gz", "c1.nii.gz"]
    assert [Path(case["image"]).name for case in cases.validation] == ["c4_norm.nii.gz"]
    written = nib.load(cases.labeled[0]["image"])
    assert written.header.get_zooms() == (1, 1, 2)
    expected = np.random.default_rng(2).normal(size=SHAPE)
    np.testing.assert_allclose(np.asarray(written.dataobj), expected, atol=1e-6)
    assert record(tmp_path / "data")["labels"] == {"background": 0, "label 1": 1, "label 2": 2}


def test_preprocessed_left_atrium_knows_its_spacing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "la"
    for case in ("P", "Q"):
        write_hdf5(source / "2018LA_Seg_Training Set" / case / "mri_norm2.h5")
    (source / "train.list").write_text("Q\n")
    with pytest.raises(SystemExit):  # the label 2 is none of the left atrium's
        prepare(str(source), str(tmp_path / "data"))
    assert "P: The label has the values 2: expected 0, 1." in capsys.readouterr().err
    prepare(str(source), str(tmp_path / "whole"), classes={"left atrium": [1, 2]})
    assert (tmp_path / "whole" / "train.list").read_text() == "Q\n"
    written = nib.load(tmp_path / "whole" / "labels" / "Q.nii.gz")
    assert written.header.get_zooms() == (0.625, 0.625, 0.625)
    assert (np.asarray(written.dataobj) == (label(1, 2) > 0)).all()


def test_brats(tmp_path: Path) -> None:
    source = brats(tmp_path / "MICCAI")
    prepare(str(source), str(tmp_path / "four"))
    check(tmp_path / "four", 2, classes=4, channels=4)
    both = voxels_of(tmp_path / "four" / "images" / "BraTS19_A.nii.gz")
    assert all((both[..., seed] == image(seed)).all() for seed in range(4))
    assert (voxels_of(tmp_path / "four" / "labels" / "BraTS19_B.nii.gz") == label(3, 2, 1)).all()
    regions = {"whole tumor": [1, 2, 3], "tumor core": [1, 3], "enhancing tumor": [3]}
    assert record(tmp_path / "four")["regions"] == regions

    prepare(str(source), str(tmp_path / "one"), channels="flair", classes={"whole tumor": [1, 2, 4]})
    check(tmp_path / "one", 2)
    assert (voxels_of(tmp_path / "one" / "images" / "BraTS19_A.nii.gz") == image(0)).all()
    assert (voxels_of(tmp_path / "one" / "labels" / "BraTS19_A.nii.gz") == label(1, 1, 1)).all()
    assert "regions" not in record(tmp_path / "one")


def test_acdc(tmp_path: Path) -> None:
    source = tmp_path / "database"
    for place, patient in (("training", "patient001"), ("training", "patient002"), ("testing", "patient101")):
        folder = source / place / patient
        for frame in (1, 9):
            write(folder / f"{patient}_frame{frame:02d}.nii.gz", image(frame))
            if patient != "patient002":
                write(folder / f"{patient}_frame{frame:02d}_gt.nii.gz", label(1, 2, 3))
        write(folder / f"{patient}_4d.nii.gz", image(shape=(*SHAPE, 3)))
        (folder / "Info.cfg").write_text("ED: 1\nES: 9\nGroup: DCM\nHeight: 184.0\nNbFrame: 30\n")
    prepare(str(source), str(tmp_path / "data"))
    check(tmp_path / "data", 2, 2, classes=4)
    names = sorted(path.name for path in (tmp_path / "data" / "images").iterdir())
    assert names == [f"patient00{number}_{phase}.nii.gz" for number in (1, 2) for phase in ("ed", "es")]
    assert (voxels_of(tmp_path / "data" / "images" / "patient001_es.nii.gz") == image(9)).all()
    assert (voxels_of(tmp_path / "data" / "labels" / "patient001_es.nii.gz") == label(1, 2, 3)).all()
