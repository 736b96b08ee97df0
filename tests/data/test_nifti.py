"""NIfTI files that can be read, and the sentences for those that cannot, as ``check_cases`` reports them."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dbisl.data import is_nifti, read_nifti
from tests.data.make_scans import SHAPE, Study, truncate, write_scan


def test_files_with_the_name_of_a_nifti_file(tmp_path: Path) -> None:
    for name in ("a.nii", "a.nii.gz", "A.NII.GZ", "._a.nii.gz", "a.nii.bak", "a.gz"):
        (tmp_path / name).touch()
    (tmp_path / "folder.nii").mkdir()
    (tmp_path / "broken_link.nii").symlink_to(tmp_path / "nowhere")
    found = {path.name for path in tmp_path.iterdir() if is_nifti(path)}
    assert found == {"a.nii", "a.nii.gz", "A.NII.GZ", "broken_link.nii"}
    assert not is_nifti(tmp_path / "missing.nii")


def test_a_file_is_read_with_header_and_voxels(tmp_path: Path) -> None:
    voxels = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    image, found, problem = read_nifti(write_scan(tmp_path / "a.nii.gz", voxels, np.diag([1.0, 2.0, 3.0, 1.0])))
    assert image is not None and problem == ""
    np.testing.assert_array_equal(image.affine, np.diag([1.0, 2.0, 3.0, 1.0]))
    np.testing.assert_array_equal(found, voxels)


def test_the_reason_names_the_file_without_its_folder(tmp_path: Path) -> None:
    path = tmp_path / ("long_" * 30) / "a.nii.gz"
    path.parent.mkdir()
    path.write_text("not an image")
    image, voxels, problem = read_nifti(path)
    assert image is None and voxels.size == 0
    assert problem.startswith(f"{path} cannot be read (") and problem.count(str(path.parent)) == 1
    assert "a.nii.gz is not a gzip file): expected a complete NIfTI file." in problem


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


def test_a_patch_with_two_axes_needs_images_with_two(study: Study) -> None:
    for path in [*map(study.image, "abuv"), *map(study.label, "abv")]:
        write_scan(path, np.zeros((6, 7), np.uint8))
    study.check(patch_size=[8, 8], patch_divisor=[4, 4], spacing=[1.0, 1.0])
    assert "expected 3 axes" in study.refusal()


@pytest.mark.parametrize("name", ["a", "u", "v"])
def test_a_truncated_image_is_refused(study: Study, name: str) -> None:
    truncate(study.image(name))
    message = study.refusal()
    assert f"{study.image(name)} cannot be read (Compressed file ended" in message
    assert "expected a complete NIfTI file" in message


def test_each_unreadable_file_is_named(study: Study) -> None:
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
def test_an_image_with_other_axes_is_refused(study: Study, shape: tuple[int, ...]) -> None:
    write_scan(study.image("u"), np.zeros(shape, np.float32))
    message = study.refusal()
    assert f"{study.image('u')} has the shape {' x '.join(map(str, shape))}: expected 3 axes" in message


def test_an_axis_of_size_zero_is_refused(study: Study) -> None:
    write_scan(study.image("u"), np.zeros((0, 7, 8), np.float32))
    assert f"{study.image('u')} has the shape 0 x 7 x 8: expected no axis of size 0" in study.refusal()


def test_voxels_that_are_not_numbers_are_refused(study: Study) -> None:
    write_scan(study.image("u"), np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")]))
    assert f"{study.image('u')} holds voxels of type" in study.refusal()


def test_an_affine_that_cannot_be_inverted_is_refused(study: Study) -> None:
    image = nib.Nifti1Image(np.zeros(SHAPE, np.float32), None)
    image.header.set_sform(np.diag([1.0, 1.0, 0.0, 1.0]), code=1)
    nib.save(image, study.image("u"))
    assert f"{study.image('u')} has an affine that cannot be inverted" in study.refusal()


def test_a_unit_other_than_the_millimetre_is_refused(study: Study) -> None:
    image = nib.Nifti1Image(np.zeros(SHAPE, np.float32), np.diag([0.001, 0.001, 0.001, 1.0]))
    image.header.set_xyzt_units("meter")
    nib.save(image, study.image("u"))
    assert f"{study.image('u')} gives its voxel size in metres" in study.refusal()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_voxels_that_are_not_finite_are_refused(study: Study, value: float) -> None:
    data = np.zeros(SHAPE, np.float32)
    data[0, 0, :2] = value
    write_scan(study.image("b"), data)
    message = study.refusal()
    assert f"{study.image('b')} has 2 voxels that are NaN or infinite: expected finite numbers" in message
