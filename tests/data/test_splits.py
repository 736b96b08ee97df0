"""Scans of one patient stay together, folds cover every labeled patient once, and a split patient is named."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from dbisl.data import find_cases, find_cases_to_evaluate
from dbisl.utils import case_name
from tests.data.make_scans import refusal, write_datalist, write_datastore, write_folder

PATIENT = r"^(p\d+)"


def write_patients(root: Path, labeled: Iterable[str], unlabeled: Iterable[str] = ()) -> Path:
    """Write a data set with scans of longer names. The files are empty, because ``find_cases`` opens none."""
    write_folder(root, labeled="")
    for name in (*labeled, *unlabeled):
        (root / "images" / f"{name}.nii.gz").touch()
    for name in labeled:
        (root / "labels" / f"{name}.nii.gz").touch()
    return root


def names(cases: Sequence[dict[str, str]]) -> list[str]:
    return [case_name(case["image"]) for case in cases]


def frames(patients: Iterable[int], *parts: str) -> list[str]:
    return [f"p{patient}_{part}" for patient in patients for part in parts]


# Groups


def test_the_last_fifth_counts_groups_and_their_unlabeled_scans_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    write_patients(tmp_path, frames(range(5), "ed", "es"), frames(range(6), "u"))
    cases = find_cases(tmp_path, group=PATIENT)
    assert names(cases.validation) == ["p4_ed", "p4_es"]
    assert names(cases.labeled) == frames(range(4), "ed", "es")
    assert names(cases.unlabeled) == ["p0_u", "p1_u", "p2_u", "p3_u", "p5_u"]
    assert "the last fifth of the 5 groups with labels" in caplog.text
    assert "1 unlabeled cases of these groups are left out" in caplog.text
    assert len(find_cases(tmp_path).unlabeled) == 6  # without groups, as ever


def test_the_whole_match_names_the_patient_where_the_expression_has_no_group(tmp_path: Path) -> None:
    write_patients(tmp_path, [f"scan{visit}_of_p{patient}" for patient in range(5) for visit in range(2)])
    cases = find_cases(tmp_path, group=r"p\d+$")
    assert len({name[-2:] for name in names(cases.validation)}) == 1 and len(cases.validation) == 2


def test_cases_have_only_the_keys_that_datasets_read(tmp_path: Path) -> None:
    write_folder(tmp_path, labeled="abcde", unlabeled="u")
    entries = [{"image": f"images/{n}.nii.gz", "label": f"labels/{n}.nii.gz", "group": n} for n in "abcde"]
    write_datalist(tmp_path, labeled=entries, unlabeled=[{"image": "images/u.nii.gz", "group": 7}])
    cases = find_cases(tmp_path, "cases.json")
    assert all(set(case) == {"image", "label"} for case in (*cases.labeled, *cases.validation))
    assert [set(case) for case in cases.unlabeled] == [{"image"}]


def test_a_datalist_names_the_groups(tmp_path: Path) -> None:
    write_folder(tmp_path, labeled="abcdef", unlabeled="xy")
    groups = dict(zip("abcdefxy", [1, 2, 3, 4, "five", "five", "five", 1], strict=True))

    def entry(name: str, **more: Any) -> dict[str, Any]:
        return {"image": f"images/{name}.nii.gz", "group": groups[name], **more}

    labeled = [entry(name, label=f"labels/{name}.nii.gz") for name in "abcdef"]
    write_datalist(tmp_path, labeled=labeled, unlabeled=[entry("x"), entry("y")])
    cases = find_cases(tmp_path, "cases.json")
    assert (names(cases.validation), names(cases.unlabeled)) == (["e", "f"], ["y"])
    write_datalist(tmp_path, labeled=[{**labeled[0], "group": ["a"]}])
    message = refusal(find_cases, tmp_path, "cases.json")
    assert "is ['a']: expected a name or a number" in message


@pytest.mark.parametrize(("training", "kind"), [("p1_es", "labeled"), ("p1_u", "unlabeled")])
def test_lists_that_split_a_group_are_refused(tmp_path: Path, training: str, kind: str) -> None:
    write_patients(tmp_path, frames(range(3), "ed", "es"), frames(range(3), "u"))
    (tmp_path / "train.list").write_text(f"p0_ed\n{training}\n")
    (tmp_path / "val.list").write_text("p1_ed\np2_ed\n")
    message = refusal(find_cases, tmp_path, group=PATIENT)
    assert "train.list, val.list" in message and "the group p1 is split" in message
    assert f"{kind} scan {tmp_path / 'images' / training}.nii.gz" in message
    find_cases(tmp_path)  # without groups it may be so
    (tmp_path / "train.list").write_text("p0_ed\np0_u\n")
    cases = find_cases(tmp_path, group=PATIENT)
    assert names(cases.validation) == ["p1_ed", "p2_ed"] and names(cases.unlabeled) == ["p0_u"]


def test_a_val_list_whose_patients_train_by_default_is_refused(tmp_path: Path) -> None:
    write_patients(tmp_path, frames(range(3), "ed"), ["p1_u"])
    (tmp_path / "val.list").write_text("p1_ed")
    assert "the group p1 is split" in refusal(find_cases, tmp_path, group=PATIENT)


def test_splits_of_a_datastore_that_split_a_group_are_refused(tmp_path: Path) -> None:
    write_datastore(tmp_path, {"p1_a": "training", "p1_b": "validation"}, [])
    assert "the group p1 is split" in refusal(find_cases, tmp_path, group=PATIENT)


def test_hidden_labels_count_scans_and_may_be_of_one_patient(tmp_path: Path) -> None:
    write_patients(tmp_path, frames(range(5), "ed", "es"))
    cases = find_cases(tmp_path, num_labeled=3, group=PATIENT)
    assert names(cases.labeled) == ["p0_ed", "p0_es", "p1_ed"]
    assert names(cases.unlabeled) == ["p1_es", "p2_ed", "p2_es", "p3_ed", "p3_es"]


@pytest.mark.parametrize(
    ("group", "found"),
    [
        ("(", "group is '(', which is no regular expression"),
        (3, "group is 3, which is no regular expression"),
        ("^(q)", "group is '^(q)', which finds no name in the case p0_ed"),
        ("p0(x?)", "finds no name in the case p0_ed"),
    ],
)
def test_an_unusable_expression_is_refused(tmp_path: Path, group: Any, found: str) -> None:
    message = refusal(find_cases, write_patients(tmp_path, ["p0_ed"]), group=group)
    assert found in message and "expected" in message


# Folds


@pytest.mark.parametrize("num_folds", [2, 3, 5, 7])
def test_every_labeled_patient_is_in_one_fold(tmp_path: Path, num_folds: int) -> None:
    write_patients(tmp_path, frames(range(7), "ed", "es"), frames(range(9), "u"))
    validated: list[str] = []
    for fold in range(num_folds):
        cases = find_cases(tmp_path, group=PATIENT, num_folds=num_folds, fold=fold)
        sides = [{name[:2] for name in names(part)} for part in (cases.labeled + cases.unlabeled, cases.validation)]
        assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 9
        assert 7 // num_folds <= len(sides[1]) <= -(-7 // num_folds)
        validated += names(cases.validation)
    assert sorted(validated) == frames(range(7), "ed", "es")


def test_a_fold_takes_every_kth_scan_by_name_in_any_order_of_the_list(tmp_path: Path) -> None:
    write_folder(tmp_path, labeled="abcdef", unlabeled="x")
    first = find_cases(tmp_path, num_folds=3, fold=1)
    assert (names(first.validation), names(first.labeled), names(first.unlabeled)) == (
        ["b", "e"],
        ["a", "c", "d", "f"],
        ["x"],
    )
    (tmp_path / "train.list").write_text("f\ne\nd\nc\nb\na\n")
    assert names(find_cases(tmp_path, num_folds=3, fold=1).validation) == ["e", "b"]


def test_cases_that_are_listed_for_validation_are_in_no_fold(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    write_folder(tmp_path, labeled="abcdef")
    (tmp_path / "val.list").write_text("a\nb")
    folds = [find_cases(tmp_path, num_folds=2, fold=fold) for fold in range(2)]
    assert [names(cases.validation) for cases in folds] == [["c", "e"], ["d", "f"]]
    assert [names(cases.labeled) for cases in folds] == [["d", "f"], ["c", "e"]]
    assert "the 2 validation cases of" in caplog.text and "are in no fold" in caplog.text


@pytest.mark.parametrize(
    ("num_folds", "fold", "found"),
    [
        (5, None, "num_folds is 5 and fold is None: expected both"),
        (None, 0, "num_folds is None and fold is 0: expected both"),
        (1, 0, "num_folds is 1: expected a whole number of at least 2"),
        (True, 0, "num_folds is True: expected a whole number"),
        (2, 2, "fold is 2: expected a whole number from 0 to 1"),
        (2, -1, "fold is -1: expected a whole number from 0 to 1"),
        (2, "0", "fold is '0': expected a whole number from 0 to 1"),
        (4, 0, "has 3 groups with labels for training: expected 2 to 3"),
    ],
)
def test_a_fold_that_does_not_exist_is_refused(tmp_path: Path, num_folds: Any, fold: Any, found: str) -> None:
    write_folder(tmp_path, labeled="abc", unlabeled="xyz")
    assert found in refusal(find_cases, tmp_path, num_folds=num_folds, fold=fold)


# Any folder of labeled scans


def test_all_labeled_scans_of_a_folder_are_evaluated_whatever_its_lists_say(tmp_path: Path) -> None:
    scans = write_folder(tmp_path / "scans", labeled="abc", unlabeled="u")
    (scans / "train.list").write_text("a\n")
    (scans / "val.list").write_text("b\n")
    cases = find_cases_to_evaluate(scans, dataset_dir=tmp_path / "none")
    assert names(cases.validation) == ["a", "b", "c"] and cases.labeled == cases.unlabeled == []
    assert cases.validation[0] == {
        "image": str(scans / "images" / "a.nii.gz"),
        "label": str(scans / "labels" / "a.nii.gz"),
    }
    assert find_cases_to_evaluate(dataset_dir=scans) == find_cases(scans)


def test_scans_may_have_the_other_layouts(tmp_path: Path) -> None:
    decathlon = write_folder(tmp_path / "msd", "ab", "u", images="imagesTr", labels="labelsTr")
    (decathlon / "dataset.json").write_text('{"training": []}')
    assert names(find_cases_to_evaluate(decathlon).validation) == ["a", "b"]
    (tmp_path / "studies").mkdir()
    write_datastore(tmp_path / "studies", {"b": "training", "d": "validation"}, ["c"])
    assert names(find_cases_to_evaluate(tmp_path / "studies").validation) == ["b", "d"]


def test_scans_that_cannot_be_evaluated_are_refused(tmp_path: Path) -> None:
    assert f"scans {tmp_path} has no images" in refusal(find_cases_to_evaluate, tmp_path)
    scans = write_folder(tmp_path / "scans", labeled="", unlabeled="ab")
    assert f"scans {scans} has 2 scans and no label" in refusal(find_cases_to_evaluate, scans)
    message = refusal(find_cases_to_evaluate, scans, dataset_dir=scans, num_folds=2, fold=0)
    assert "fold is 0: expected one of them" in message
