"""The demo's dataset: reproducible, in the bundle's layout, with two adjoining parts that no threshold finds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from scripts.make_demo_data import Scan, best_threshold_dice, make_demo_data

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "make_demo_data.py"
COUNTS = {"num_labeled": 2, "num_unlabeled": 3, "num_validation": 2}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small dataset, in a folder whose parent was missing too."""
    folder = tmp_path_factory.mktemp("demo") / "deeper" / "data"
    make_demo_data(folder, seed=1, **COUNTS)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name.removesuffix(".nii.gz") for path in folder.glob("*.nii.gz"))


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def read(path: Path) -> np.ndarray:
    return np.asarray(nib.Nifti1Image.from_filename(path).dataobj)


def read_pairs(dataset: Path) -> list[tuple[Path, Path]]:
    """Return the image and the label of every scan that has a label."""
    labels = sorted(dataset.rglob("labels/*.nii.gz"))
    return [(label.parents[1] / "images" / label.name, label) for label in labels]


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Return the content and the time of change of every file."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def run_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False)


def test_layout_and_counts(dataset: Path) -> None:
    train, val = lines(dataset / "train.list"), lines(dataset / "val.list")
    assert (len(train), len(val)) == (5, 2)
    assert names(dataset / "images") == sorted(train + val)
    assert names(dataset / "labels") == sorted(train[:2] + val)
    assert len(names(dataset / "unseen" / "images")) == 3
    assert names(dataset / "unseen" / "labels") == names(dataset / "unseen" / "images")


def test_nothing_is_left_beside_the_dataset(dataset: Path) -> None:
    assert list(dataset.parent.iterdir()) == [dataset]


def test_image_and_label_share_a_grid_of_1_mm(dataset: Path) -> None:
    shapes = set()
    for image_path, label_path in read_pairs(dataset):
        image, label = nib.Nifti1Image.from_filename(image_path), nib.Nifti1Image.from_filename(label_path)
        assert image.shape == label.shape
        np.testing.assert_array_equal(image.affine, label.affine)
        assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
        assert image.header.get_zooms() == (1, 1, 1)
        assert image.get_data_dtype() == np.int16 and label.get_data_dtype() == np.uint8
        np.testing.assert_allclose(image.shape, (35, 51, 35), atol=5)
        shapes.add(image.shape)
    assert len(shapes) > 1


def test_labels_are_two_adjoining_parts_in_one_piece_each(dataset: Path) -> None:
    for _, path in read_pairs(dataset):
        label = read(path)
        assert set(np.unique(label)) == {0, 1, 2}
        for mask in (label == 1, label == 2, label > 0):
            assert ndimage.label(mask)[1] == 1
        assert np.any(ndimage.binary_dilation(label == 1) & (label == 2))
        anterior, posterior = (np.argwhere(label == part).mean(axis=0) for part in (1, 2))
        assert anterior[1] > posterior[1] + 8, "the anterior part lies in front"


def test_no_threshold_solves_it(dataset: Path) -> None:
    scans = [Scan(read(image), read(label)) for image, label in read_pairs(dataset)]
    assert 0 < best_threshold_dice(scans) < 0.5


def test_best_threshold_dice_finds_the_interval() -> None:
    label = np.zeros((4, 5, 6), np.uint8)
    label[1:3, 1:3, 1:3] = 1
    between = np.where(label > 0, 50, np.random.default_rng(0).choice([0, 100], label.shape))
    assert best_threshold_dice([Scan(between, label)]) == pytest.approx(1)
    everything = 2 * label.sum() / (label.sum() + label.size)
    useless = np.random.default_rng(0).choice([0, 100], label.shape)
    useless[label > 0] = [0, 100] * 4
    assert best_threshold_dice([Scan(useless, label)]) == pytest.approx(everything, abs=0.05)


def test_same_seed_same_scans_whatever_the_counts(dataset: Path, tmp_path: Path) -> None:
    make_demo_data(tmp_path / "more", seed=1, num_labeled=3, num_unlabeled=3, num_validation=2)
    for path in sorted(dataset.rglob("*.nii.gz")):
        np.testing.assert_array_equal(read(path), read(tmp_path / "more" / path.relative_to(dataset)))


def test_another_seed_gives_other_scans(dataset: Path, tmp_path: Path) -> None:
    make_demo_data(tmp_path / "other", seed=2, num_labeled=1, num_unlabeled=0, num_validation=0)
    first = "images/train_00.nii.gz"
    assert not np.array_equal(read(dataset / first), read(tmp_path / "other" / first))


def test_second_run_changes_nothing_and_says_so(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(dataset)
    make_demo_data(dataset, seed=1, **COUNTS)
    assert snapshot(dataset) == before
    assert "already holds this dataset" in capsys.readouterr().out


def test_other_arguments_are_refused(dataset: Path) -> None:
    before = snapshot(dataset)
    with pytest.raises(FileExistsError, match="is not this dataset"):
        make_demo_data(dataset, seed=7, **COUNTS)
    assert snapshot(dataset) == before


def test_incomplete_dataset_is_refused(tmp_path: Path) -> None:
    counts = {"num_labeled": 1, "num_unlabeled": 0, "num_validation": 0}
    make_demo_data(tmp_path / "data", **counts)
    (tmp_path / "data" / "labels" / "train_00.nii.gz").unlink()
    with pytest.raises(FileExistsError, match="is not this dataset"):
        make_demo_data(tmp_path / "data", **counts)


@pytest.mark.parametrize("record", [None, "not json", "[]", "{}"])
def test_command_refuses_a_foreign_folder_in_one_sentence(tmp_path: Path, record: str | None) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    if record is not None:
        (tmp_path / "demo.json").write_text(record, encoding="utf-8")
    before = snapshot(tmp_path)
    result = run_command("--output_dir", str(tmp_path))
    assert result.returncode == 1
    assert str(tmp_path) in result.stderr and len(result.stderr.splitlines()) == 1
    assert snapshot(tmp_path) == before


def test_command_makes_the_dataset_and_prints_the_threshold(tmp_path: Path) -> None:
    counts = ("--num_labeled", "1", "--num_unlabeled", "1", "--num_validation", "1")
    result = run_command("--output_dir", str(tmp_path / "data"), "--seed", "3", *counts)
    assert result.returncode == 0, result.stderr
    assert "best threshold Dice: 0." in result.stdout
    assert lines(tmp_path / "data" / "val.list") == ["val_00"]


@pytest.mark.parametrize(
    ("name", "value"), [("num_labeled", 0), ("num_unlabeled", -1), ("num_validation", 1.5), ("seed", -1)]
)
def test_bad_numbers_are_refused(tmp_path: Path, name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a whole number of at least .*, got {value}"):
        make_demo_data(tmp_path / "data", **{name: value})  # type: ignore[arg-type]
    assert not any(tmp_path.iterdir())


def test_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(nib, "save", fail)
    with pytest.raises(KeyboardInterrupt):
        make_demo_data(tmp_path / "data", num_labeled=1, num_unlabeled=0, num_validation=0)
    assert not any(tmp_path.iterdir())
