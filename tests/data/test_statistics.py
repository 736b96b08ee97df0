"""What training scans were like, and which scans are unlike them."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dbisl.data import describe_scans, measure_scan, unlike_training
from tests.data.make_scans import truncate, write_scan
from tests.data.make_series import write_series

SHAPE = (20, 24, 10)


def voxels(mean: float = 100.0, scale: float = 20.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, scale, SHAPE).astype(np.float32)


def affine(*spacing: float) -> np.ndarray:
    return np.diag([*spacing, 1.0])


@pytest.fixture
def trained(tmp_path: Path) -> dict[str, Any]:
    """The description of three scans: means of 90 to 110, slices of 3 to 4 mm."""
    cases = [
        {"image": str(write_scan(tmp_path / f"{index}.nii.gz", voxels(90 + 10 * index), affine(1, 1, 3 + index / 2)))}
        for index in range(3)
    ]
    return describe_scans(labeled=cases[:1], unlabeled=cases, spatial_dims=3, in_channels=1)


def test_a_scan_is_measured_along_its_anatomical_axes(tmp_path: Path) -> None:
    turned = np.array([[0, 0, -2.0, 0], [0.5, 0, 0, 0], [0, 4.0, 0, 0], [0, 0, 0, 1]])
    data = np.stack([voxels(), voxels(1000, 1)], axis=-1)
    scan = measure_scan(write_scan(tmp_path / "a.nii.gz", data, turned), 3, 2)
    np.testing.assert_allclose(scan.spacing, [2.0, 0.5, 4.0])
    np.testing.assert_allclose(scan.extent, [20.0, 10.0, 96.0])
    np.testing.assert_allclose(scan.percentiles[0], np.percentile(voxels(), [0.5, 50, 99.5]), rtol=1e-5)
    assert scan.percentiles.shape == (2, 3) and scan.percentiles[1, 1] == pytest.approx(1000, abs=1)


def test_a_dicom_series_is_measured_in_its_rescaled_values(tmp_path: Path) -> None:
    stored = voxels().astype(np.int16)
    write_series(tmp_path / "series", stored)
    scan = measure_scan(tmp_path / "series", 3, 1)
    np.testing.assert_allclose(scan.spacing, [0.8, 0.7, 2.0])
    np.testing.assert_allclose(scan.extent, np.multiply(SHAPE, [0.8, 0.7, 2.0]))
    np.testing.assert_allclose(scan.percentiles[0], np.percentile(stored, [0.5, 50, 99.5]))


def test_a_large_scan_is_measured_by_a_sample(tmp_path: Path) -> None:
    data = np.random.default_rng(0).normal(0, 1, (160, 150, 140)).astype(np.float32)
    scan = measure_scan(write_scan(tmp_path / "a.nii.gz", data), 3, 1)
    np.testing.assert_allclose(scan.percentiles[0], [-2.576, 0, 2.576], atol=0.03)


def test_a_scan_that_cannot_be_read(tmp_path: Path) -> None:
    path = write_scan(tmp_path / "a.nii.gz", voxels())
    truncate(path)
    with pytest.raises(ValueError, match=r"a\.nii\.gz cannot be read"):
        measure_scan(path, 3, 1)


def test_the_description_has_names_digests_and_ranges(tmp_path: Path, trained: dict[str, Any]) -> None:
    assert json.loads(json.dumps(trained)) == trained and str(tmp_path) not in json.dumps(trained)
    digests = [hashlib.sha256((tmp_path / f"{index}.nii.gz").read_bytes()).hexdigest()[:16] for index in range(3)]
    assert trained["labeled"] == {digests[0]: "0.nii.gz"}
    assert trained["unlabeled"] == {digests[1]: "1.nii.gz", digests[2]: "2.nii.gz"}
    assert trained["measured"] == 3
    assert trained["spacing"] == [[1.0, 1.0, 3.0], [1.0, 1.0, 4.0]]
    assert trained["extent"] == [[20.0, 24.0, 30.0], [20.0, 24.0, 40.0]]
    medians = [percentiles[0][1] for percentiles in trained["percentiles"]]
    assert medians == pytest.approx([90, 110], abs=2)


def test_a_scan_that_is_gone_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    here = write_scan(tmp_path / "a.nii.gz", voxels())
    cases = [{"image": str(here)}, {"image": str(tmp_path / "gone.nii.gz")}]
    with caplog.at_level(logging.WARNING):
        described = describe_scans(labeled=cases, unlabeled=[], spatial_dims=3, in_channels=1)
    assert list(described["labeled"].values()) == ["a.nii.gz"] and described["measured"] == 1
    assert len(caplog.messages) == 1 and "gone.nii.gz" in caplog.messages[0]


def test_without_any_scan_nothing_is_unlike(tmp_path: Path) -> None:
    described = describe_scans(labeled=[], unlabeled=[], spatial_dims=3, in_channels=1)
    assert described == {"labeled": {}, "unlabeled": {}, "measured": 0}
    assert unlike_training(measure_scan(write_scan(tmp_path / "a.nii.gz", voxels()), 3, 1), described) == ""


@pytest.mark.parametrize(
    ("data", "spacing", "clause"),
    [
        (voxels(100, 20, 5), (1.0, 1.0, 3.5), ""),
        (voxels(110, 25, 5), (0.8, 0.8, 5.0), ""),
        (voxels(), (1.0, 1.0, 9.0), "voxels of 1, 1, 9 mm, there 1, 1, 3 to 4 mm; a size of 20, 24, 90 mm"),
        (voxels(), (1.0, 0.4, 3.0), "voxels of 1, 0.4, 3 mm"),
        (voxels(1100), (1.0, 1.0, 3.0), "intensities of 10"),
        (voxels(0.1, 0.02), (1.0, 1.0, 3.0), "intensities of 0.0"),
        (voxels(100, 2), (1.0, 1.0, 3.0), "intensities of 9"),
    ],
)
def test_scans_that_are_like_the_training_scans_or_not(
    tmp_path: Path, trained: dict[str, Any], data: np.ndarray, spacing: tuple[float, ...], clause: str
) -> None:
    scan = measure_scan(write_scan(tmp_path / "new.nii.gz", data, affine(*spacing)), 3, 1)
    warning = unlike_training(scan, trained)
    assert warning.startswith(f"unlike the training scans: {clause}") if clause else warning == ""
