"""``check_cases`` accepts a sound data set and lists the problems of others."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from tests.data.make_scans import SHAPE, Study, truncate, write_scan


def test_sound_cases_pass_and_are_counted(study: Study, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    study.check()
    assert "Checked 2 labeled, 1 unlabeled and 1 validation cases in " in caplog.text


def test_other_keys_of_a_case_are_ignored(study: Study) -> None:
    study.label("v").unlink()
    study.assert_accepted(
        labeled=[{"image": study.image("a"), "label": study.label("a"), "note": 1}],
        unlabeled=[{"image": study.image("u"), "label": "hidden, never opened"}],
        validation=[],
    )


# Lists and options


def test_no_labeled_cases_are_refused_unless_labels_are_optional(study: Study) -> None:
    assert "no labeled cases: expected at least one" in study.refusal(labeled=[])
    study.assert_accepted(labeled=[], labels_required=False)


def test_an_entry_without_a_path_is_refused(study: Study) -> None:
    labeled = [{"image": str(study.image("a"))}, {"label": str(study.label("b"))}]
    lines = study.refusal(labeled=labeled, unlabeled=[{"image": 7}]).splitlines()
    assert f"labeled case {study.image('a')} has None as its label" in lines[0]
    assert "labeled case number 2 has None as its image" in lines[1]
    assert "unlabeled case 7 has 7 as its image" in lines[2] and "expected the path of a file" in lines[2]


@pytest.mark.parametrize("stream", ["labeled", "unlabeled"])
def test_an_image_for_training_and_validation_is_refused(study: Study, stream: str) -> None:
    link = study.root / "link.nii.gz"
    link.symlink_to(study.image("v"))
    message = study.refusal(**{stream: [*study.options[stream], {"image": link, "label": study.label("v")}]})
    assert f"{study.image('v')} is listed for training and for validation" in message


@pytest.mark.parametrize(("size", "nearest"), [(9, "8 or 12"), (3, "is 4"), (0, "is 4"), (-4, "is 4")])
def test_a_patch_that_the_network_cannot_halve_is_refused(study: Study, size: int, nearest: str) -> None:
    message = study.refusal(patch_size=[8, size, 8])
    assert f"patch_size is [8, {size}, 8]: expected a multiple of 4 on axis 1, not {size}" in message
    assert nearest in message


def test_a_patch_with_one_voxel_at_the_deepest_level_is_refused(study: Study) -> None:
    assert "expected more than [4, 4, 4] on at least one axis" in study.refusal(patch_size=[4, 4, 4])


def test_a_patch_with_wrong_bfloat16_gradients_is_refused(study: Study) -> None:
    study.check(patch_size=[8, 12, 12])
    message = study.refusal(patch_size=[8, 12, 12], bfloat16_on_cpu=True)
    assert "patch_size is 8 on axis 0" in message and "expected at least 12, or --amp False" in message
    study.check(patch_size=[12, 8, 8], bfloat16_on_cpu=True)


@pytest.mark.parametrize("spacing", [[1.0, 1.0], [1.0, 1.0, 0.0]])
def test_a_spacing_that_does_not_fit_is_refused(study: Study, spacing: list[float]) -> None:
    assert f"spacing is {spacing}: expected 3 positive numbers" in study.refusal(spacing=spacing)


# Labels


def test_a_label_with_another_shape_is_refused(study: Study) -> None:
    write_scan(study.label("b"), np.zeros((6, 7, 9), np.uint8))
    message = study.refusal()
    assert f"{study.label('b')} has the shape 6 x 7 x 9: expected 6 x 7 x 8, as {study.image('b')} has" in message


def test_a_label_with_another_affine_is_refused(study: Study) -> None:
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
def test_label_values_that_are_not_classes_are_refused(study: Study, values: np.ndarray, listed: str) -> None:
    write_scan(study.label("v"), np.resize(values, SHAPE))
    message = study.refusal()
    assert f"{study.label('v')} has label values {listed}: expected whole numbers from 0 to 1" in message
    assert "class_names has 2 names" in message


def test_a_label_may_hold_255_beside_a_structure(study: Study) -> None:
    write_scan(study.label("v"), np.resize(np.array([0, 1, 255], np.uint8), SHAPE))
    study.assert_accepted()
    write_scan(study.label("v"), np.resize(np.array([0, 255], np.uint8), SHAPE))
    assert f"{study.label('v')} has only the label values 0 and 255" in study.refusal()


def test_a_float_label_with_whole_numbers_is_accepted(study: Study) -> None:
    write_scan(study.label("v"), np.ones(SHAPE, np.float64))
    study.assert_accepted()


# Patches


def test_a_patch_far_beyond_the_largest_training_scan_is_refused(study: Study) -> None:
    # The longest patches that pass are 24, 28 and 32. A large validation scan changes nothing.
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


# Several problems


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
