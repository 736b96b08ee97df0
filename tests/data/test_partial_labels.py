"""Slices without a structure are marked as not annotated, and scans with partial labels are found."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dbisl.data import mark_file, mark_unannotated_slices, unlabeled_scans
from dbisl.utils import InputError


def ball(dtype: type = np.uint8) -> np.ndarray:
    """Return a label with a ball of class 1 around a ball of class 2, ``20 x 18 x 16``."""
    grid = np.indices((20, 18, 16))
    distance = ((grid - np.array([10, 9, 8]).reshape(3, 1, 1, 1)) ** 2).sum(axis=0)
    return np.where(distance < 9, 2, distance < 36).astype(dtype)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_without_an_outline_are_marked_along_the_axis_that_was_outlined(axis: int) -> None:
    label = ball(np.int16)
    outlined = np.arange(label.shape[axis]) % 3 == 0
    np.moveaxis(label, axis, 0)[~outlined] = 0
    marked = mark_unannotated_slices(label)
    assert marked.dtype == np.uint8
    holds_some = np.moveaxis(label, axis, 0).any(axis=(1, 2))
    assert (np.moveaxis(marked, axis, 0)[~holds_some] == 255).all()
    np.testing.assert_array_equal(
        np.moveaxis(marked, axis, 0)[holds_some], np.moveaxis(label, axis, 0)[holds_some].astype(np.uint8)
    )


def test_a_whole_label_is_marked_only_beyond_its_ends() -> None:
    label = ball()
    marked = mark_unannotated_slices(label)
    assert (marked[label > 0] == label[label > 0]).all()
    ignored = np.argwhere(marked == 255)
    assert len({tuple(np.delete(place, 0)) for place in ignored}) > 0
    assert all(not label[place[0]].any() or not label[..., place[2]].any() for place in ignored)


@pytest.mark.parametrize("every", [2, 4])
def test_the_space_between_two_structures_does_not_hide_the_outlined_axis(every: int) -> None:
    label = np.zeros((80, 20, 18), np.uint8)
    label[10:25, 4:16, 2:16] = 1
    label[60:75, 4:16, 2:16] = 2
    label[..., np.arange(18) % every != 0] = 0
    marked = mark_unannotated_slices(label)
    np.testing.assert_array_equal((marked == 255).all(axis=(0, 1)), ~label.any(axis=(0, 1)))
    assert (marked[..., label.any(axis=(0, 1))] != 255).all()


@pytest.mark.parametrize("value", [-1, 1.5, 300])
def test_values_that_are_not_class_indices_are_refused(value: float) -> None:
    label = ball(np.float32)
    label[0, 0, 0] = value
    with pytest.raises(ValueError, match=f"^The label has the value {value:g}: expected whole numbers from 0 to 255"):
        mark_unannotated_slices(label)


def test_marking_twice_gives_the_same_as_marking_once() -> None:
    label = ball()
    label[..., 1::2] = 0
    once = mark_unannotated_slices(label)
    np.testing.assert_array_equal(mark_unannotated_slices(once), once)


def test_a_file_is_marked_in_place(tmp_path: Path) -> None:
    label, affine = ball(np.float32), np.diag([1.0, 2, 3, 1])
    label[..., 1::2] = 0
    nib.save(nib.Nifti1Image(label, affine), tmp_path / "a.nii.gz")
    mark_file(tmp_path / "a.nii.gz")
    written = nib.load(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj), mark_unannotated_slices(label.astype(np.uint8)))
    np.testing.assert_array_equal(written.affine, affine)
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii.gz"]


def test_an_empty_label_is_refused_and_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)), path)
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"a\.nii\.gz: The label has no voxel of a structure"):
        mark_file(path)
    assert path.read_bytes() == before


def test_a_scan_with_a_partial_label_is_in_the_unlabeled_stream_too(tmp_path: Path) -> None:
    cases = []
    for name, values in (("whole", [0, 1, 2]), ("partial", [0, 1, 255]), ("broken", None)):
        image, label = tmp_path / f"{name}.nii.gz", tmp_path / f"{name}_label.nii.gz"
        if values is None:
            label.write_text("not a label")
        else:
            nib.save(nib.Nifti1Image(np.array(values, np.uint8).reshape(3, 1, 1), np.eye(4)), label)
        cases.append({"image": str(image), "label": str(label)})
    assert unlabeled_scans([{"image": "a.nii.gz"}], cases) == [{"image": "a.nii.gz"}, {"image": cases[1]["image"]}]
    listed = [{"image": cases[1]["image"]}]
    assert unlabeled_scans(listed, cases) == listed
