"""Which slices of a label count as annotated."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dbisl.data import mark_file, mark_unannotated_slices
from dbisl.utils import InputError


def ball(dtype: type = np.uint8) -> np.ndarray:
    grid = np.indices((20, 18, 16))
    distance = ((grid - np.array([10, 9, 8]).reshape(3, 1, 1, 1)) ** 2).sum(axis=0)
    return np.where(distance < 9, 2, distance < 36).astype(dtype)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_without_an_outline_are_unknown_along_the_axis_that_was_outlined(axis: int) -> None:
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


def test_a_whole_label_loses_nothing_but_what_lies_beyond_its_ends() -> None:
    label = ball()
    marked = mark_unannotated_slices(label)
    assert (marked[label > 0] == label[label > 0]).all()
    unknown = np.argwhere(marked == 255)
    assert len({tuple(np.delete(place, 0)) for place in unknown}) > 0
    assert all(not label[place[0]].any() or not label[..., place[2]].any() for place in unknown)


@pytest.mark.parametrize("every", [2, 4])
def test_two_structures_apart_leave_no_doubt_about_the_axis(every: int) -> None:
    label = np.zeros((80, 20, 18), np.uint8)
    label[10:25, 4:16, 2:16] = 1
    label[60:75, 4:16, 2:16] = 2
    label[..., np.arange(18) % every != 0] = 0
    marked = mark_unannotated_slices(label)
    np.testing.assert_array_equal((marked == 255).all(axis=(0, 1)), ~label.any(axis=(0, 1)))
    assert (marked[..., label.any(axis=(0, 1))] != 255).all()


@pytest.mark.parametrize("value", [-1, 1.5, 300])
def test_what_is_no_label_is_refused(value: float) -> None:
    label = ball(np.float32)
    label[0, 0, 0] = value
    with pytest.raises(ValueError, match=f"has the value {value:g}: expected whole numbers from 0 to 255"):
        mark_unannotated_slices(label)


def test_marking_twice_is_marking_once() -> None:
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


def test_an_empty_label_is_refused_and_left(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)), path)
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"a\.nii\.gz has no voxel of a structure"):
        mark_file(path)
    assert path.read_bytes() == before
