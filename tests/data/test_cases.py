"""Folders, datalists and datastores become cases, and a data set that cannot be used gives one clear sentence."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from dbisl.data import Cases, find_cases
from tests.data.make_scans import refusal, write_datalist, write_datastore, write_folder


def names(cases: Iterable[dict[str, str]]) -> str:
    """Return the one-letter names of cases as one string."""
    return "".join(Path(case["image"]).name[0] for case in cases)


def split(cases: Cases) -> tuple[str, str, str]:
    """Return the names of the labeled, unlabeled and validation cases."""
    return names(cases.labeled), names(cases.unlabeled), names(cases.validation)


# Folders


def test_a_case_is_labeled_if_its_label_file_exists(tmp_path: Path) -> None:
    cases = find_cases(write_folder(tmp_path, labeled="bd", unlabeled="ca"))
    assert split(cases) == ("bd", "ac", "")
    assert cases.labeled[0] == {
        "image": str(tmp_path / "images" / "b.nii.gz"),
        "label": str(tmp_path / "labels" / "b.nii.gz"),
    }
    assert cases.unlabeled[0] == {"image": str(tmp_path / "images" / "a.nii.gz")}


def test_lists_give_the_split_and_its_order(tmp_path: Path) -> None:
    write_folder(tmp_path, labeled="abcd", unlabeled="ef")
    (tmp_path / "train.list").write_text("d\n\nb.nii.gz\n  f\n")
    (tmp_path / "val.list").write_text("c.nii\r\n")
    assert split(find_cases(tmp_path)) == ("db", "f", "c")


def test_without_a_train_list_every_case_outside_the_val_list_is_for_training(tmp_path: Path) -> None:
    write_folder(tmp_path, labeled="abcd", unlabeled="ef")
    (tmp_path / "val.list").write_text("a\nb")
    assert split(find_cases(tmp_path)) == ("cd", "ef", "ab")


@pytest.mark.parametrize(
    ("labeled", "expected"), [("abcd", ("abcd", "")), ("abcde", ("abcd", "e")), ("abcdefghij", ("abcdefgh", "ij"))]
)
def test_without_a_val_list_the_last_fifth_of_the_labeled_cases_is_for_validation(
    tmp_path: Path, labeled: str, expected: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    cases = find_cases(write_folder(tmp_path, labeled, unlabeled="xyz"))
    assert split(cases) == (expected[0], "xyz", expected[1])
    assert f"{len(expected[0])} labeled, 3 unlabeled and {len(expected[1])} validation" in caplog.text
    assert ("the last fifth" if expected[1] else "validation: none") in caplog.text


def test_an_empty_val_list_turns_validation_off(tmp_path: Path) -> None:
    write_folder(tmp_path, labeled="abcdef")
    (tmp_path / "val.list").touch()
    assert split(find_cases(tmp_path)) == ("abcdef", "", "")


def test_both_extensions_are_read_and_other_files_are_ignored(tmp_path: Path) -> None:
    write_folder(tmp_path, labeled="a")
    for name in ("images/b.nii", "labels/b.nii.gz", "images/._a.nii.gz", "images/notes.txt", "images/c.nii.bak"):
        (tmp_path / name).touch()
    assert split(find_cases(tmp_path)) == ("ab", "", "")


def test_num_labeled_keeps_the_first_labels_and_hides_the_others(tmp_path: Path) -> None:
    write_folder(tmp_path, labeled="abcdef", unlabeled="xy")
    cases = find_cases(tmp_path, num_labeled=2)
    assert split(cases) == ("ab", "xycde", "f")
    assert all(set(case) == {"image"} for case in cases.unlabeled)


def test_a_label_without_an_image_gives_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_folder(tmp_path, labeled="a", unlabeled="b")
    (tmp_path / "labels" / "b_seg.nii.gz").touch()
    find_cases(tmp_path)
    assert str(tmp_path / "labels" / "b_seg.nii.gz") in caplog.text


def test_names_of_cases_keep_their_dots(tmp_path: Path) -> None:
    write_folder(tmp_path, labeled="")
    for name in ("sub.niigata", "sub.nagano"):
        (tmp_path / "images" / f"{name}.nii.gz").touch()
        (tmp_path / "labels" / f"{name}.nii").touch()
    (tmp_path / "train.list").write_text("sub.niigata.nii.gz\n")
    (tmp_path / "val.list").write_text("sub.nagano\n")
    cases = find_cases(tmp_path)
    assert [Path(case["label"]).name for case in cases.labeled] == ["sub.niigata.nii"]
    assert [Path(case["label"]).name for case in cases.validation] == ["sub.nagano.nii"]


def test_paths_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "data", labeled="a")
    monkeypatch.chdir(tmp_path)
    assert find_cases("data/../data").labeled[0]["image"] == str(tmp_path / "data" / "images" / "a.nii.gz")


# The layout of the Decathlon


def test_decathlon_without_a_list_uses_its_folders(tmp_path: Path) -> None:
    write_folder(tmp_path, "ab", "c", images="imagesTr", labels="labelsTr")
    (tmp_path / "imagesTr" / "._a.nii.gz").touch()
    (tmp_path / "imagesTs").mkdir()
    (tmp_path / "imagesTs" / "t.nii.gz").touch()
    assert split(find_cases(tmp_path)) == ("ab", "c", "")


def test_decathlon_with_dataset_json_uses_its_lists(tmp_path: Path) -> None:
    write_folder(tmp_path, "abcd", "e", images="imagesTr", labels="labelsTr")
    pairs = {name: {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in "abcde"}
    lists = {"name": "demo", "test": ["./imagesTs/t.nii.gz"], "training": [pairs[name] for name in "cbe"]}
    (tmp_path / "dataset.json").write_text(json.dumps(lists))
    assert split(find_cases(tmp_path)) == ("cb", "e", "")
    (tmp_path / "dataset.json").write_text(json.dumps({**lists, "validation": [pairs["d"]]}))
    assert split(find_cases(tmp_path)) == ("cb", "e", "d")
    (tmp_path / "dataset.json").write_text(json.dumps({"validation": [pairs["a"]]}))
    assert split(find_cases(tmp_path)) == ("bcd", "e", "a")
    (tmp_path / "dataset.json").write_text(json.dumps({**lists, "validation": [pairs["b"]]}))
    message = refusal(find_cases, tmp_path)
    assert "dataset.json" in message and str(tmp_path / "imagesTr" / "b.nii.gz") in message


# Datastores of an annotation server


def test_studies_with_a_final_label_are_labeled_and_keep_their_split(tmp_path: Path) -> None:
    write_datastore(tmp_path, {"b": "training", "d": "validation", "a": None}, ["c", "e"])
    cases = find_cases(tmp_path)
    assert [case["image"] for case in cases.labeled] == [str(tmp_path / f"{name}.nii.gz") for name in "ba"]
    assert cases.labeled[0]["label"] == str(tmp_path / "labels" / "final" / "b.nii.gz")
    assert cases.unlabeled == [{"image": str(tmp_path / f"{name}.nii.gz")} for name in "ce"]
    assert [case["image"] for case in cases.validation] == [str(tmp_path / "d.nii.gz")]


def test_studies_without_a_split_follow_the_rule_of_a_folder(tmp_path: Path) -> None:
    write_datastore(tmp_path, dict.fromkeys("abcde"), ["u"])
    cases = find_cases(tmp_path)
    assert len(cases.labeled) == 4 and len(cases.validation) == 1


def test_a_datastore_without_scans_is_refused(tmp_path: Path) -> None:
    (tmp_path / "datastore_v2.json").write_text(json.dumps({"objects": {}}))
    assert "has no images" in refusal(find_cases, tmp_path)


# Datalists


def pair(name: str) -> dict[str, str]:
    """Return the entry of a labeled case in a datalist."""
    return {"image": f"images/{name}.nii.gz", "label": f"labels/{name}.nii.gz"}


def test_a_datalist_names_the_cases(tmp_path: Path) -> None:
    write_folder(tmp_path, labeled="abc", unlabeled="xyz")
    absolute = str(tmp_path / "images" / "z.nii.gz")
    path = write_datalist(
        tmp_path, labeled=[pair("b")], unlabeled=["images/x.nii.gz", pair("c"), absolute], validation=[pair("a")]
    )
    cases = find_cases(tmp_path, path)
    assert split(cases) == ("b", "xcz", "a")
    assert all(set(case) == {"image"} for case in cases.unlabeled)
    assert find_cases(tmp_path, "cases.json") == cases


def test_a_datalist_without_validation_follows_the_rule_of_a_folder(tmp_path: Path) -> None:
    write_folder(tmp_path, labeled="abcde")
    write_datalist(tmp_path, labeled=[pair(name) for name in "abcde"])
    assert split(find_cases(tmp_path, "cases.json")) == ("abcd", "", "e")
    write_datalist(tmp_path, labeled=[pair(name) for name in "abcde"], validation=[])
    assert split(find_cases(tmp_path, "cases.json")) == ("abcde", "", "")


# Data sets that cannot be used


@pytest.mark.parametrize(
    ("make", "found"), [("", "does not exist"), ("other", "has no images"), ("imagesTr", "has no")]
)
def test_a_folder_without_images_is_refused(tmp_path: Path, make: str, found: str) -> None:
    folder = tmp_path / "data"
    if make:
        (folder / make).mkdir(parents=True)
    message = refusal(find_cases, folder)
    assert f"dataset_dir {folder} {found}" in message and "imagesTr/ and labelsTr/" in message
    assert "`python scripts/make_demo_data.py --output_dir DIR`" in message


@pytest.mark.parametrize("name", ["train.list", "val.list"])
def test_a_listed_case_without_an_image_is_refused(tmp_path: Path, name: str) -> None:
    write_folder(tmp_path, labeled="ab")
    (tmp_path / name).write_text("a\nmissing\n")
    message = refusal(find_cases, tmp_path)
    assert str(tmp_path / name) in message and str(tmp_path / "images" / "missing.nii.gz") in message


def test_a_case_that_is_listed_twice_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, labeled="ab")
    (tmp_path / "train.list").write_text("a\nb\na.nii.gz\n")
    assert f"{tmp_path / 'train.list'} lists the case a 2 times: expected once" in refusal(find_cases, tmp_path)


@pytest.mark.parametrize("folder", ["images", "labels"])
def test_two_files_for_one_case_are_refused(tmp_path: Path, folder: str) -> None:
    write_folder(tmp_path, labeled="ab")
    (tmp_path / folder / "a.nii").touch()
    message = refusal(find_cases, tmp_path)
    assert f"{tmp_path / folder} has a.nii and a.nii.gz" in message and "expected one file" in message


def test_a_validation_case_without_a_label_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, labeled="a", unlabeled="b")
    (tmp_path / "val.list").write_text("b")
    message = refusal(find_cases, tmp_path)
    assert "val.list" in message and str(tmp_path / "images" / "b.nii.gz") in message and "no label file" in message


def test_a_case_for_training_and_for_validation_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, labeled="abc")
    (tmp_path / "train.list").write_text("a\nb")
    (tmp_path / "val.list").write_text("b\nc")
    message = refusal(find_cases, tmp_path)
    assert "train.list, val.list" in message and str(tmp_path / "images" / "b.nii.gz") in message


def test_a_data_set_without_labels_is_refused_unless_they_are_optional(tmp_path: Path) -> None:
    message = refusal(find_cases, write_folder(tmp_path, labeled="", unlabeled="abc"))
    assert f"{tmp_path}: found no label among 3 training cases" in message and "expected at least one" in message
    assert split(find_cases(tmp_path, labels_required=False)) == ("", "abc", "")


@pytest.mark.parametrize("number", [0, -1, 1.5, True, "four"])
def test_num_labeled_must_be_a_whole_number_above_zero(tmp_path: Path, number: Any) -> None:
    message = refusal(find_cases, write_folder(tmp_path, labeled="ab"), num_labeled=number)
    assert f"num_labeled is {number!r}" in message and "at least 1" in message


def test_num_labeled_beyond_the_labeled_cases_is_refused(tmp_path: Path) -> None:
    message = refusal(find_cases, write_folder(tmp_path, labeled="abcde"), num_labeled=5)
    assert "num_labeled is 5, but 4 labeled training cases exist" in message and "1 more are held out" in message


def test_a_datalist_that_is_missing_or_not_json_is_refused(tmp_path: Path) -> None:
    message = refusal(find_cases, tmp_path, "cases.json")
    assert f"{tmp_path / 'cases.json'} does not exist" in message
    (tmp_path / "cases.json").write_text('{"labeled": [}')
    message = refusal(find_cases, tmp_path, "cases.json")
    assert f"{tmp_path / 'cases.json'} is not a JSON file" in message and "line 1" in message
    (tmp_path / "cases.json").write_text("[]")
    assert "holds a list: expected a JSON object" in refusal(find_cases, tmp_path, "cases.json")


def test_a_datalist_with_other_keys_is_refused(tmp_path: Path) -> None:
    write_datalist(tmp_path, labelled=[])
    message = refusal(find_cases, tmp_path, "cases.json")
    assert "unknown key 'labelled'" in message and "nearest is 'labeled'" in message
    write_datalist(tmp_path, unlabeled=[])
    assert "has no key 'labeled'" in refusal(find_cases, tmp_path, "cases.json")
    write_datalist(tmp_path, labeled={"image": "a"})
    assert "'labeled' is a dict: expected a list" in refusal(find_cases, tmp_path, "cases.json")


@pytest.mark.parametrize(
    ("lists", "found"),
    [
        ({"labeled": [{"label": "labels/a.nii.gz"}]}, "labeled: the entry {'label': 'labels/a.nii.gz'} names no image"),
        ({"labeled": [pair("a")], "unlabeled": [3]}, "unlabeled: the entry 3 names no image"),
        ({"labeled": [pair("a")], "unlabeled": ["images/q.nii.gz"]}, "unlabeled: the image images/q.nii.gz was not"),
        ({"labeled": [pair("u")]}, "is 'labels/u.nii.gz': expected the path of a file"),
        ({"labeled": [pair("a")], "validation": ["images/b.nii.gz"]}, "is None: expected the path of a file"),
        ({"labeled": [pair("a")], "validation": [pair("a")]}, "is listed for training and for validation"),
    ],
)
def test_a_datalist_with_unusable_entries_is_refused(tmp_path: Path, lists: dict[str, Any], found: str) -> None:
    write_folder(tmp_path, labeled="ab", unlabeled="u")
    path = write_datalist(tmp_path, **lists)
    message = refusal(find_cases, tmp_path, path)
    assert str(path) in message and found in message and "expected" in message
