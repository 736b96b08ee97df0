"""Which scans of an archive are found, and which can be segmented."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dbisl.data import check_image, find_images
from dbisl.utils import InputError
from tests.bundle.archives import GOOD, write_scan
from tests.data.make_series import CT, write_series


def names(folder: Path, dataset_dir: object) -> list[str]:
    """The scans that are found, relative to a folder."""
    return [str(Path(case["image"]).relative_to(folder)) for case in find_images(dataset_dir)]  # type: ignore[arg-type]


def test_files_and_series_at_any_depth_are_found(tmp_path: Path) -> None:
    for name in ("b.nii.gz", "a.nii", ".hidden.nii.gz"):
        write_scan(tmp_path / name, GOOD)
    write_series(tmp_path / "patient" / "study" / "series", CT)
    assert names(tmp_path, tmp_path) == ["a.nii", "b.nii.gz", "patient/study/series"]
    assert names(tmp_path, str(tmp_path / "a.nii")) == ["a.nii"]
    assert names(tmp_path, tmp_path / "patient" / "study" / "series") == ["patient/study/series"]


def test_a_list_keeps_its_order_and_each_scan_once(tmp_path: Path) -> None:
    for name in ("b.nii.gz", "a.nii.gz"):
        write_scan(tmp_path / name, GOOD)
    listed = [tmp_path / "b.nii.gz", tmp_path, tmp_path / "missing.nii.gz"]
    assert names(tmp_path, listed) == ["b.nii.gz", "a.nii.gz", "missing.nii.gz"]


@pytest.mark.parametrize("dataset_dir", ["nowhere", [], 3])
def test_nothing_to_segment_is_refused(tmp_path: Path, dataset_dir: object) -> None:
    with pytest.raises(InputError, match=r"dataset_dir .* expected a folder with"):
        find_images(dataset_dir)  # type: ignore[arg-type]


def test_a_scan_that_cannot_be_segmented_is_named(tmp_path: Path) -> None:
    check_image(write_scan(tmp_path / "fine.nii.gz", GOOD), spatial_dims=3, in_channels=1)
    constant = write_scan(tmp_path / "constant.nii.gz", np.full_like(GOOD, 2))
    with pytest.raises(ValueError, match="has the value 2 in every voxel: expected an image"):
        check_image(constant, spatial_dims=3, in_channels=1)
    with pytest.raises(ValueError, match="does not exist"):
        check_image(tmp_path / "missing.nii.gz", spatial_dims=3, in_channels=1)
    with pytest.raises(ValueError, match=r"expected 3 axes and a last one of size 2"):
        check_image(tmp_path / "fine.nii.gz", spatial_dims=3, in_channels=2)
