"""DICOM series: how they are read, and which are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dbisl.data import DicomSeriesReader, check_image, is_dicom_series
from tests.data.make_series import CT, write_series, write_slice

BROKEN_SERIES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "two_series": (
        lambda p: write_slice(p / "x.dcm", CT[:, :, 0].T, 22, SeriesInstanceUID="1.2.4"),
        "x.dcm has the SeriesInstanceUID 1.2.4, but 000.dcm has 1.2.3: expected one series per folder",
    ),
    "missing_slice": (lambda p: (p / "004.dcm").unlink(), "among 21 slices at equal distances: expected a series with"),
    "doubled_slice": (lambda p: write_slice(p / "x.dcm", CT[:, :, 3].T, 3), "among 23 slices at equal distances"),
    "truncated_slice": (
        lambda p: (p / "004.dcm").write_bytes((p / "004.dcm").read_bytes()[:900]),
        "004.dcm cannot be read (",
    ),
    "no_dicom_slice": (lambda p: (p / "004.dcm").write_text("?"), "004.dcm cannot be read (File is missing DICOM"),
    "other_size": (
        lambda p: write_slice(p / "x.dcm", CT[:9, :, 0].T, 22),
        "x.dcm has the Columns 9, but 000.dcm has 20",
    ),
    "no_position": (
        lambda p: write_slice(p / "x.dcm", CT[:, :, 0].T, 22, ImagePositionPatient=None),
        "x.dcm has no ImagePositionPatient: expected 3 numbers in each slice",
    ),
    "at_one_height": (
        lambda p: [write_slice(p / f"{i:03}.dcm", CT[:, :, i].T, i, ImagePositionPatient=[i, 0, 0]) for i in range(22)],
        "has all its slices at one height: expected them one above",
    ),
    "no_spacing": (
        lambda p: write_slice(p / "000.dcm", CT[:, :, 0].T, 0, PixelSpacing=[0, 0]),
        "000.dcm has the PixelSpacing [0.0, 0.0]: expected 2 numbers",
    ),
    "no_rescaling": (
        lambda p: write_slice(p / "000.dcm", CT[:, :, 0].T, 0, RescaleSlope=None),
        "000.dcm has the RescaleSlope without a value: expected a number",
    ),
    "one_slice": (lambda p: [path.unlink() for path in sorted(p.iterdir())[1:]], "has one slice: expected a series"),
    "constant": (lambda p: write_series(p, np.full_like(CT, 3)), "has the value 3 in every voxel: expected an image"),
}


def test_a_complete_series_is_accepted_until_a_slice_is_lost(tmp_path: Path) -> None:
    write_series(tmp_path / "series", CT)
    check_image(tmp_path / "series", spatial_dims=3, in_channels=1)
    (tmp_path / "series" / "004.dcm").unlink()
    with pytest.raises(ValueError, match="among 21 slices"):
        check_image(tmp_path / "series", spatial_dims=3, in_channels=1)


@pytest.mark.parametrize("name", BROKEN_SERIES)
def test_a_broken_series_is_refused(tmp_path: Path, name: str) -> None:
    spoil, reason = BROKEN_SERIES[name]
    write_series(tmp_path / "series", CT)
    spoil(tmp_path / "series")
    with pytest.raises(ValueError) as caught:
        check_image(tmp_path / "series", spatial_dims=3, in_channels=1)
    assert reason in str(caught.value)


@pytest.mark.parametrize(("spatial_dims", "in_channels"), [(2, 1), (3, 2)])
def test_a_series_has_three_axes_and_one_channel(tmp_path: Path, spatial_dims: int, in_channels: int) -> None:
    write_series(tmp_path / "series", CT)
    with pytest.raises(ValueError, match="is a DICOM series, which has 3 axes and 1 channel"):
        check_image(tmp_path / "series", spatial_dims, in_channels)


def test_slices_are_stacked_by_position_whatever_their_names_and_numbers(tmp_path: Path) -> None:
    for index in range(CT.shape[2]):
        number = (index * 5) % CT.shape[2]
        write_slice(tmp_path / "series" / f"{number:03}", CT[:, :, index].T, index, InstanceNumber=number)
    (tmp_path / "series" / "notes.txt").write_text("not a slice")
    assert is_dicom_series(tmp_path / "series") and not is_dicom_series(tmp_path)
    reader = DicomSeriesReader()
    voxels, meta = reader.get_data(reader.read([tmp_path / "series"]))
    np.testing.assert_array_equal(voxels, CT)
    np.testing.assert_allclose(np.linalg.norm(meta["affine"][:3, :3], axis=0), [0.8, 0.7, 2.0], atol=1e-6)
