"""Folders and datalists become cases, and bad input becomes one clear sentence."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from dbisl.data import Cases, check_cases, find_cases, unlabeled_scans
from dbisl.utils import InputError

SHAPE = (6, 7, 8)


def write_scan(path: Path, data: np.ndarray | None = None, affine: np.ndarray | None = None) -> Path:
    """A NIfTI file of noise, or of ``data``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32) if data is None else data
    nib.save(nib.Nifti1Image(data, np.eye(4) if affine is None else affine), path)
    return path


def write_folder(root: Path, labeled: str, unlabeled: str = "", images: str = "images", labels: str = "labels") -> Path:
    """A case a letter. Finding cases opens no file: empty ones do."""
    for folder in (images, labels):
        (root / folder).mkdir(parents=True)
    for name in labeled + unlabeled:
        (root / images / f"{name}.nii.gz").touch()
    for name in labeled:
        (root / labels / f"{name}.nii.gz").touch()
    return root


def names(cases: Iterable[dict[str, str]]) -> str:
    return "".join(Path(case["image"]).name[0] for case in cases)


def split(cases: Cases) -> tuple[str, str, str]:
    return names(cases.labeled), names(cases.unlabeled), names(cases.validation)


def refusal(function: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    with pytest.raises(InputError) as caught:
        function(*args, **kwargs)
    message = str(caught.value)
    assert all(line.endswith(".") for line in message.splitlines())
    return message


# ---- find_cases: a folder ----


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


def test_without_a_train_list_everything_outside_the_val_list_is_for_training(tmp_path: Path) -> None:
    write_folder(tmp_path, labeled="abcd", unlabeled="ef")
    (tmp_path / "val.list").write_text("a\nb")
    assert split(find_cases(tmp_path)) == ("cd", "ef", "ab")


@pytest.mark.parametrize(
    ("labeled", "expected"), [("abcd", ("abcd", "")), ("abcde", ("abcd", "e")), ("abcdefghij", ("abcdefgh", "ij"))]
)
def test_without_a_val_list_the_last_fifth_of_the_labeled_cases_validates(
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


def test_both_extensions_are_read_and_other_files_are_left_alone(tmp_path: Path) -> None:
    write_folder(tmp_path, labeled="a")
    for name in ("images/b.nii", "labels/b.nii.gz", "images/._a.nii.gz", "images/notes.txt", "images/c.nii.bak"):
        (tmp_path / name).touch()
    assert split(find_cases(tmp_path)) == ("ab", "", "")


def test_labels_are_hidden_from_all_but_the_first(tmp_path: Path) -> None:
    write_folder(tmp_path, labeled="abcdef", unlabeled="xy")
    cases = find_cases(tmp_path, num_labeled=2)
    assert split(cases) == ("ab", "xycde", "f")
    assert all(set(case) == {"image"} for case in cases.unlabeled)


def test_a_label_whose_image_is_missing_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_folder(tmp_path, labeled="a", unlabeled="b")
    (tmp_path / "labels" / "b_seg.nii.gz").touch()
    find_cases(tmp_path)
    assert str(tmp_path / "labels" / "b_seg.nii.gz") in caplog.text


def test_paths_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "data", labeled="a")
    monkeypatch.chdir(tmp_path)
    assert find_cases("data/../data").labeled[0]["image"] == str(tmp_path / "data" / "images" / "a.nii.gz")


# ---- find_cases: the Decathlon's layout ----


def test_decathlon_without_a_list_uses_its_folders(tmp_path: Path) -> None:
    write_folder(tmp_path, "ab", "c", images="imagesTr", labels="labelsTr")
    (tmp_path / "imagesTr" / "._a.nii.gz").touch()
    (tmp_path / "imagesTs").mkdir()
    (tmp_path / "imagesTs" / "t.nii.gz").touch()
    assert split(find_cases(tmp_path)) == ("ab", "c", "")


def test_decathlon_with_its_list(tmp_path: Path) -> None:
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


# ---- find_cases: a datalist ----


def pair(name: str) -> dict[str, str]:
    return {"image": f"images/{name}.nii.gz", "label": f"labels/{name}.nii.gz"}


def write_datalist(root: Path, **lists: Any) -> Path:
    path = root / "cases.json"
    path.write_text(json.dumps(lists))
    return path


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


def test_a_datalist_without_validation_follows_the_folder_s_rule(tmp_path: Path) -> None:
    write_folder(tmp_path, labeled="abcde")
    write_datalist(tmp_path, labeled=[pair(name) for name in "abcde"])
    assert split(find_cases(tmp_path, "cases.json")) == ("abcd", "", "e")
    write_datalist(tmp_path, labeled=[pair(name) for name in "abcde"], validation=[])
    assert split(find_cases(tmp_path, "cases.json")) == ("abcde", "", "")


# ---- find_cases: refusals ----


@pytest.mark.parametrize(
    ("make", "found"), [("", "does not exist"), ("other", "has no images"), ("imagesTr", "has no")]
)
def test_no_images(tmp_path: Path, make: str, found: str) -> None:
    folder = tmp_path / "data"
    if make:
        (folder / make).mkdir(parents=True)
    message = refusal(find_cases, folder)
    assert f"dataset_dir {folder} {found}" in message and "imagesTr/ and labelsTr/" in message
    assert "`python scripts/make_demo_data.py --output_dir DIR`" in message


@pytest.mark.parametrize("name", ["train.list", "val.list"])
def test_a_listed_case_without_an_image(tmp_path: Path, name: str) -> None:
    write_folder(tmp_path, labeled="ab")
    (tmp_path / name).write_text("a\nmissing\n")
    message = refusal(find_cases, tmp_path)
    assert str(tmp_path / name) in message and str(tmp_path / "images" / "missing.nii.gz") in message


def test_a_case_listed_twice(tmp_path: Path) -> None:
    write_folder(tmp_path, labeled="ab")
    (tmp_path / "train.list").write_text("a\nb\na.nii.gz\n")
    assert f"{tmp_path / 'train.list'} lists the case a 2 times: expected once" in refusal(find_cases, tmp_path)


@pytest.mark.parametrize("folder", ["images", "labels"])
def test_two_files_of_one_case(tmp_path: Path, folder: str) -> None:
    write_folder(tmp_path, labeled="ab")
    (tmp_path / folder / "a.nii").touch()
    message = refusal(find_cases, tmp_path)
    assert f"{tmp_path / folder} has a.nii and a.nii.gz" in message and "expected one file" in message


def test_a_validation_case_without_a_label(tmp_path: Path) -> None:
    write_folder(tmp_path, labeled="a", unlabeled="b")
    (tmp_path / "val.list").write_text("b")
    message = refusal(find_cases, tmp_path)
    assert "val.list" in message and str(tmp_path / "images" / "b.nii.gz") in message and "no label file" in message


def test_a_case_for_training_and_for_validation(tmp_path: Path) -> None:
    write_folder(tmp_path, labeled="abc")
    (tmp_path / "train.list").write_text("a\nb")
    (tmp_path / "val.list").write_text("b\nc")
    message = refusal(find_cases, tmp_path)
    assert "train.list, val.list" in message and str(tmp_path / "images" / "b.nii.gz") in message


def test_no_labels_at_all(tmp_path: Path) -> None:
    message = refusal(find_cases, write_folder(tmp_path, labeled="", unlabeled="abc"))
    assert f"{tmp_path}: found no label among 3 training cases" in message and "expected at least one" in message


@pytest.mark.parametrize("number", [0, -1, 1.5, True, "four"])
def test_num_labeled_is_a_whole_number_above_zero(tmp_path: Path, number: Any) -> None:
    message = refusal(find_cases, write_folder(tmp_path, labeled="ab"), num_labeled=number)
    assert f"num_labeled is {number!r}" in message and "at least 1" in message


def test_more_labels_than_there_are(tmp_path: Path) -> None:
    message = refusal(find_cases, write_folder(tmp_path, labeled="abcde"), num_labeled=5)
    assert "num_labeled is 5, but 4 labeled training cases exist" in message and "1 more are held out" in message


def test_a_datalist_that_is_missing_or_no_json(tmp_path: Path) -> None:
    message = refusal(find_cases, tmp_path, "cases.json")
    assert f"{tmp_path / 'cases.json'} does not exist" in message
    (tmp_path / "cases.json").write_text('{"labeled": [}')
    message = refusal(find_cases, tmp_path, "cases.json")
    assert f"{tmp_path / 'cases.json'} is no JSON file" in message and "line 1" in message
    (tmp_path / "cases.json").write_text("[]")
    assert "holds a list: expected a JSON object" in refusal(find_cases, tmp_path, "cases.json")


def test_a_datalist_s_keys(tmp_path: Path) -> None:
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
def test_a_datalist_s_entries(tmp_path: Path, lists: dict[str, Any], found: str) -> None:
    write_folder(tmp_path, labeled="ab", unlabeled="u")
    path = write_datalist(tmp_path, **lists)
    message = refusal(find_cases, tmp_path, path)
    assert str(path) in message and found in message and "expected" in message


def test_an_input_error_is_one_sentence_on_stderr(tmp_path: Path) -> None:
    command = "import sys; from dbisl.data import find_cases; find_cases(sys.argv[1])"
    result = subprocess.run(
        [sys.executable, "-c", command, str(tmp_path)],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(Path(__file__).parents[2] / "bundle"), "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 1
    assert result.stderr.startswith(f"dataset_dir {tmp_path} has no images") and result.stderr.count("\n") == 1


# ---- check_cases ----


def make_datastore(root: Path, splits: dict[str, str | None], unlabeled: list[str]) -> None:
    """Studies as MONAI Label leaves them: final labels with their split, proposals, and scans that nobody opened."""
    objects: dict[str, Any] = {}
    for name in [*splits, *unlabeled]:
        write_scan(root / f"{name}.nii.gz")
        labels = {"original": {"ext": ".nii.gz", "info": {}}}
        write_scan(root / "labels" / "original" / f"{name}.nii.gz")
        info = {}
        if name in splits:
            write_scan(root / "labels" / "final" / f"{name}.nii.gz")
            labels["final"] = {"ext": ".nii.gz", "info": {}}
            info = {} if splits[name] is None else {"split": splits[name]}
        objects[name] = {"image": {"ext": ".nii.gz", "info": info}, "labels": labels}
    store = {"name": "", "description": "", "images_dir": ".", "labels_dir": "labels", "objects": objects}
    (root / "datastore_v2.json").write_text(json.dumps(store))


def test_studies_of_an_annotation_server(tmp_path: Path) -> None:
    make_datastore(tmp_path, {"b": "training", "d": "validation", "a": None}, ["c", "e"])
    cases = find_cases(tmp_path)
    assert [case["image"] for case in cases.labeled] == [str(tmp_path / f"{name}.nii.gz") for name in "ba"]
    assert cases.labeled[0]["label"] == str(tmp_path / "labels" / "final" / "b.nii.gz")
    assert cases.unlabeled == [{"image": str(tmp_path / f"{name}.nii.gz")} for name in "ce"]
    assert [case["image"] for case in cases.validation] == [str(tmp_path / "d.nii.gz")]


def test_studies_without_a_split_and_without_scans(tmp_path: Path) -> None:
    make_datastore(tmp_path, dict.fromkeys("abcde"), ["u"])
    cases = find_cases(tmp_path)
    assert len(cases.labeled) == 4 and len(cases.validation) == 1
    (tmp_path / "datastore_v2.json").write_text(json.dumps({"objects": {}}))
    assert "has no images" in refusal(find_cases, tmp_path)


class Study:
    """Two labeled, one unlabeled and one validation case, and the options that fit them."""

    def __init__(self, root: Path, caplog: pytest.LogCaptureFixture) -> None:
        self.root, self.caplog = root, caplog
        label = np.random.default_rng(1).integers(0, 2, SHAPE).astype(np.uint8)
        for name in "abuv":
            write_scan(self.image(name))
            if name != "u":
                write_scan(self.label(name), label)
        self.options: dict[str, Any] = {
            "labeled": [self.pair("a"), self.pair("b")],
            "unlabeled": [{"image": str(self.image("u"))}],
            "validation": [self.pair("v")],
            "in_channels": 1,
            "out_channels": 2,
            "patch_size": [8, 8, 8],
            "patch_divisor": 4,
            "spacing": [1.0, 1.0, 1.0],
        }

    def image(self, name: str) -> Path:
        return self.root / "images" / f"{name}.nii.gz"

    def label(self, name: str) -> Path:
        return self.root / "labels" / f"{name}.nii.gz"

    def pair(self, name: str) -> dict[str, str]:
        return {"image": str(self.image(name)), "label": str(self.label(name))}

    def check(self, **changes: Any) -> None:
        check_cases(**{**self.options, **changes})

    def refusal(self, **changes: Any) -> str:
        return refusal(self.check, **changes)

    def assert_accepted(self, **changes: Any) -> None:
        """Check, and see that every case was read."""
        options = {**self.options, **changes}
        counts = [len(options[name]) for name in ("labeled", "unlabeled", "validation")]
        with self.caplog.at_level(logging.INFO):
            self.check(**changes)
        read = "Checked {} labeled, {} unlabeled and {} validation cases".format(*counts)
        assert self.caplog.records[-1].message.startswith(read)


@pytest.fixture
def study(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Study:
    return Study(tmp_path, caplog)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])


def test_good_cases_pass_and_are_counted(study: Study, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    study.check()
    assert "Checked 2 labeled, 1 unlabeled and 1 validation cases in " in caplog.text


def test_only_image_and_label_are_used(study: Study) -> None:
    study.label("v").unlink()
    study.assert_accepted(
        labeled=[{"image": study.image("a"), "label": study.label("a"), "note": 1}],
        unlabeled=[{"image": study.image("u"), "label": "hidden, never opened"}],
        validation=[],
    )


def test_a_single_volume_may_have_a_fourth_axis(study: Study) -> None:
    write_scan(study.image("a"), np.zeros((*SHAPE, 1), np.float32))
    write_scan(study.label("b"), np.zeros((*SHAPE, 1), np.uint8))
    study.assert_accepted()


def test_channels_are_the_last_axis(study: Study) -> None:
    for name in "abuv":
        write_scan(study.image(name), np.zeros((*SHAPE, 3), np.float32))
    study.check(in_channels=3)
    message = study.refusal(in_channels=2)
    assert "6 x 7 x 8 x 3" in message and "3 axes and a last one of size 2" in message


def test_no_labeled_cases(study: Study) -> None:
    assert "no labeled cases: expected at least one" in study.refusal(labeled=[])


def test_an_entry_that_lacks_a_path(study: Study) -> None:
    labeled = [{"image": str(study.image("a"))}, {"label": str(study.label("b"))}]
    lines = study.refusal(labeled=labeled, unlabeled=[{"image": 7}]).splitlines()
    assert f"labeled case {study.image('a')} has None as its label" in lines[0]
    assert "labeled case number 2 has None as its image" in lines[1]
    assert "unlabeled case 7 has 7 as its image" in lines[2] and "expected the path of a file" in lines[2]


@pytest.mark.parametrize("stream", ["labeled", "unlabeled"])
def test_one_image_for_training_and_validation(study: Study, stream: str) -> None:
    link = study.root / "link.nii.gz"
    link.symlink_to(study.image("v"))
    message = study.refusal(**{stream: [*study.options[stream], {"image": link, "label": study.label("v")}]})
    assert f"{study.image('v')} is listed for training and for validation" in message


@pytest.mark.parametrize(("size", "nearest"), [(9, "8 or 12"), (3, "is 4"), (0, "is 4"), (-4, "is 4")])
def test_a_patch_that_the_network_cannot_halve(study: Study, size: int, nearest: str) -> None:
    message = study.refusal(patch_size=[8, size, 8])
    assert f"patch_size is [8, {size}, 8]: expected a multiple of 4 on axis 1, not {size}" in message
    assert nearest in message


@pytest.mark.parametrize("spacing", [[1.0, 1.0], [1.0, 1.0, 0.0]])
def test_a_spacing_that_does_not_fit(study: Study, spacing: list[float]) -> None:
    assert f"spacing is {spacing}: expected 3 positive numbers" in study.refusal(spacing=spacing)


@pytest.mark.parametrize("name", ["a", "u", "v"])
def test_a_truncated_image(study: Study, name: str) -> None:
    truncate(study.image(name))
    message = study.refusal()
    assert f"{study.image(name)} cannot be read (Compressed file ended" in message
    assert "expected a complete NIfTI file" in message


def test_unreadable_files(study: Study) -> None:
    truncate(study.label("a"))
    study.image("b").write_text("not an image")
    study.label("v").unlink()
    plain = write_scan(study.root / "images" / "plain.nii")
    truncate(plain)
    lines = study.refusal(unlabeled=[{"image": plain}]).splitlines()
    assert f"{study.label('a')} cannot be read" in lines[0]
    assert f"{study.image('b')} cannot be read" in lines[1]
    assert f"{plain} cannot be read" in lines[2]
    assert f"{study.label('v')} does not exist" in lines[3]


@pytest.mark.parametrize("shape", [(6, 7), (6, 7, 8, 2)])
def test_an_image_with_other_axes(study: Study, shape: tuple[int, ...]) -> None:
    write_scan(study.image("u"), np.zeros(shape, np.float32))
    message = study.refusal()
    assert f"{study.image('u')} has the shape {' x '.join(map(str, shape))}: expected 3 axes" in message


def test_flat_images_for_a_flat_patch(study: Study) -> None:
    for path in [*map(study.image, "abuv"), *map(study.label, "abv")]:
        write_scan(path, np.zeros((6, 7), np.uint8))
    study.check(patch_size=[8, 8], spacing=[1.0, 1.0])
    assert "expected 3 axes" in study.refusal()


def test_an_axis_of_size_zero(study: Study) -> None:
    write_scan(study.image("u"), np.zeros((0, 7, 8), np.float32))
    assert f"{study.image('u')} has the shape 0 x 7 x 8: expected no axis of size 0" in study.refusal()


def test_voxels_that_are_no_numbers(study: Study) -> None:
    write_scan(study.image("u"), np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")]))
    assert f"{study.image('u')} holds voxels of type" in study.refusal()


def test_an_affine_that_cannot_be_inverted(study: Study) -> None:
    image = nib.Nifti1Image(np.zeros(SHAPE, np.float32), None)
    image.header.set_sform(np.diag([1.0, 1.0, 0.0, 1.0]), code=1)
    nib.save(image, study.image("u"))
    assert f"{study.image('u')} has an affine that cannot be inverted" in study.refusal()


def test_a_unit_that_is_not_the_millimetre(study: Study) -> None:
    image = nib.Nifti1Image(np.zeros(SHAPE, np.float32), np.diag([0.001, 0.001, 0.001, 1.0]))
    image.header.set_xyzt_units("meter")
    nib.save(image, study.image("u"))
    assert f"{study.image('u')} gives its voxel size in metres" in study.refusal()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_voxels_that_are_not_finite(study: Study, value: float) -> None:
    data = np.zeros(SHAPE, np.float32)
    data[0, 0, :2] = value
    write_scan(study.image("b"), data)
    message = study.refusal()
    assert f"{study.image('b')} has 2 voxels that are NaN or infinite: expected finite numbers" in message


def test_a_label_of_another_shape(study: Study) -> None:
    write_scan(study.label("b"), np.zeros((6, 7, 9), np.uint8))
    message = study.refusal()
    assert f"{study.label('b')} has the shape 6 x 7 x 9: expected 6 x 7 x 8, as {study.image('b')} has" in message


def test_a_label_of_another_affine(study: Study) -> None:
    near, far = np.eye(4), np.diag([1.0, 1.0, 2.0, 1.0])
    near[0, 3] = 5e-4
    label = np.zeros(SHAPE, np.uint8)
    write_scan(study.label("a"), label, near)
    write_scan(study.label("b"), label, far)
    message = study.refusal()
    assert len(message.splitlines()) == 1
    assert f"{study.label('b')} has the affine [[1.0, 0.0, 0.0, 0.0]" in message and str(study.image("b")) in message


@pytest.mark.parametrize(
    ("values", "listed"),
    [
        (np.array([0, 1, 2, 254, 255], np.uint8), "2, 254"),
        (np.array([-1, 1], np.int16), "-1"),
        (np.array([0.5, 1.0], np.float32), "0.5"),
        (np.array([np.nan, 1.0], np.float32), "nan"),
        (np.arange(9, dtype=np.uint8), "2, 3, 4, 5, 6, ..."),
    ],
)
def test_label_values_that_are_no_class(study: Study, values: np.ndarray, listed: str) -> None:
    write_scan(study.label("v"), np.resize(values, SHAPE))
    message = study.refusal()
    assert f"{study.label('v')} has label values {listed}: expected whole numbers from 0 to 1" in message
    assert "out_channels is 2" in message


def test_what_was_not_annotated_is_255(study: Study) -> None:
    write_scan(study.label("v"), np.resize(np.array([0, 1, 255], np.uint8), SHAPE))
    study.assert_accepted()
    write_scan(study.label("v"), np.resize(np.array([0, 255], np.uint8), SHAPE))
    assert f"{study.label('v')} has no label values but 0 and 255" in study.refusal()


def test_whole_numbers_in_a_float_label_are_fine(study: Study) -> None:
    write_scan(study.label("v"), np.ones(SHAPE, np.float64))
    study.assert_accepted()


def test_a_patch_far_beyond_the_largest_training_scan(study: Study) -> None:
    # The longest patches that pass are 24, 28 and 32; a large scan for validation changes nothing.
    study.check(patch_size=[24, 28, 32])
    write_scan(study.image("v"), np.zeros((30, 30, 30), np.float32))
    write_scan(study.label("v"), np.zeros((30, 30, 30), np.uint8))
    message = study.refusal(patch_size=[24, 32, 32])
    assert len(message.splitlines()) == 1
    assert "patch_size is 32 on axis 1, but the largest training scan has 7 voxels there" in message
    assert "expected at most 4 times that" in message


def test_the_patch_is_compared_after_resampling_and_in_ras_order(study: Study) -> None:
    # The axes of the file run inferior, left and anterior, with voxels of 2, 2 and 1 mm.
    affine = np.array([[0, -2.0, 0, 0], [0, 0, 1.0, 0], [-2.0, 0, 0, 0], [0, 0, 0, 1]])
    for name in "abuv":
        write_scan(study.image(name), affine=affine)
    for name in "abv":
        write_scan(study.label(name), np.zeros(SHAPE, np.uint8), affine)
    # Millimetres along R, A, S: 7 * 2, 8 * 1, 6 * 2.
    study.check(spacing=[1.0, 1.0, 1.0], patch_size=[56, 32, 48])
    message = study.refusal(spacing=[2.0, 0.5, 1.0], patch_size=[32, 68, 52])
    assert "patch_size is 32 on axis 0, but the largest training scan has 7 voxels" in message
    assert "patch_size is 68 on axis 1, but the largest training scan has 16 voxels" in message
    assert "patch_size is 52 on axis 2, but the largest training scan has 12 voxels" in message
    study.check(spacing=None, patch_size=[28, 32, 24])


def test_many_problems_are_listed_in_order_and_counted(study: Study) -> None:
    unlabeled = [{"image": study.root / f"missing_{index:02d}.nii.gz"} for index in range(12)]
    truncate(study.image("a"))
    lines = study.refusal(unlabeled=unlabeled).splitlines()
    assert str(study.image("a")) in lines[0]
    assert [str(case["image"]) in line for case, line in zip(unlabeled, lines[1:10], strict=False)] == [True] * 9
    assert lines[10] == "... and 3 more problems."


def test_a_scan_in_both_streams_is_read_once(study: Study) -> None:
    truncate(study.image("a"))
    message = study.refusal(unlabeled=[{"image": str(study.image("a"))}, *study.options["unlabeled"]])
    assert len(message.splitlines()) == 1


def test_where_nothing_was_annotated_a_scan_is_an_unlabeled_one(tmp_path: Path) -> None:
    cases = []
    for name, values in (("whole", [0, 1, 2]), ("partial", [0, 1, 255]), ("broken", None)):
        image, label = tmp_path / f"{name}.nii.gz", tmp_path / f"{name}_label.nii.gz"
        if values is None:
            label.write_text("no label")
        else:
            nib.save(nib.Nifti1Image(np.array(values, np.uint8).reshape(3, 1, 1), np.eye(4)), label)
        cases.append({"image": str(image), "label": str(label)})
    assert unlabeled_scans([{"image": "a.nii.gz"}], cases) == [{"image": "a.nii.gz"}, {"image": cases[1]["image"]}]
    already = [{"image": cases[1]["image"]}]
    assert unlabeled_scans(already, cases) == already
