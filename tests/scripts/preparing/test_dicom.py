"""DICOM series and their labels, as DICOM-SEG or as the NIfTI files of Pancreas-CT, keep their place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest

from scripts.prepare import prepare
from tests.scripts.preparing.sources import (
    by_place,
    check,
    image,
    label,
    record,
    write,
    write_segmentation,
    write_series,
)


def test_pancreas_label_is_turned_onto_its_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "tcia"
    series = np.diag([-0.8, -0.7, 2, 1])  # RAS directions of what write_slice writes
    for number in (1, 2, 3):
        write_series(source / "Pancreas-CT" / f"PANCREAS_{number:04d}" / "1" / "2", image(number))
    write(source / "labels" / "label0001.nii.gz", label(1), series)
    # The same label with its axes in another order and direction; as in the real ones, the origin says nothing.
    turned = label(1).transpose(2, 0, 1)[:, ::-1, ::-1]
    write(source / "labels" / "label0002.nii.gz", turned, series[:, [2, 0, 1, 3]] @ np.diag([1, -1, -1, 1]))
    write(source / "labels" / "label0003.nii.gz", label(1)[1:], series)
    with pytest.raises(SystemExit):
        prepare(str(source), str(tmp_path / "data"))
    errors = capsys.readouterr().err
    assert "1 problems" in errors and "pancreas_0003: The label has the shape (8, 8, 7): expected (9, 8, 7)" in errors
    check(tmp_path / "data", 2)
    first, second = (tmp_path / "data" / "labels" / f"pancreas_000{number}.nii.gz" for number in (1, 2))
    assert by_place(first) == by_place(second) and len(by_place(first)) == (label(1) > 0).sum()
    # A voxel's value stays where the scanner put it: 2 mm above 30 for each slice, 10 left of the middle at column 0.
    values = by_place(tmp_path / "data" / "images" / "pancreas_0001.nii.gz")
    assert values[(10.0 - 0.8 * 3, 20.0 - 0.7 * 5, 30.0 + 2 * 6)] == image(1)[3, 5, 6]
    centre = (10 - 0.8 * 1, 20 - 0.7 * 1, 30.0 + 2 * 2)
    assert by_place(first)[tuple(np.round(centre, 2).tolist())] == 1


def test_dicom_series_with_segmentations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "archive"
    for number, patient in enumerate(("Ann 1", "Bob", "Bob")):
        folder = source / f"{patient}-{number}"
        write_series(folder, image(number), SeriesInstanceUID=f"1.2.{number}", PatientID=patient)
    parts = {"liver": label(0, 1) > 0, "kidney": label(1) > 0}
    write_segmentation(source / "Ann 1-0" / "seg.dcm", "1.2.0", parts)  # among the slices
    (source / "Segs").mkdir()
    write_segmentation(source / "Segs" / "bob.dcm", "1.2.1", {"spleen": label(0, 0, 1) > 0}, fractional=True)
    prepare(str(source), str(tmp_path / "data"))
    check(tmp_path / "data", 2, 1, classes=4)
    assert record(tmp_path / "data")["labels"] == {"background": 0, "kidney": 1, "liver": 2, "spleen": 3}
    names = sorted(path.name for path in (tmp_path / "data" / "images").iterdir())
    assert names == ["Ann_1.nii.gz", "Bob_1.nii.gz", "Bob_2.nii.gz"]
    assert len(by_place(tmp_path / "data" / "labels" / "Bob_1.nii.gz")) == (label(0, 0, 1) > 0).sum()
    places = by_place(tmp_path / "data" / "labels" / "Ann_1.nii.gz")
    for value, mask in ((1, parts["kidney"]), (2, parts["liver"])):
        x, y, z = np.argwhere(mask)[0]
        assert places[tuple(np.round([10 - 0.8 * x, 20 - 0.7 * y, 30.0 + 2 * z], 2).tolist())] == value
        assert list(places.values()).count(value) == mask.sum()

    write_segmentation(source / "Segs" / "bob.dcm", "1.2.1", {"spleen": label(1) > 0, "liver": label(1) > 0})
    write_segmentation(source / "Segs" / "lost.dcm", "9.9", {"spleen": label(1) > 0})
    with pytest.raises(SystemExit):
        prepare(str(source), str(tmp_path / "again"))
    errors = capsys.readouterr().err
    assert "lost.dcm refers to the series 9.9, which is not in" in errors
    assert "Bob_1:" in errors and "over another one: expected one segment per voxel." in errors


def test_a_series_without_a_slice_is_named_with_its_own_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(2):
        write_series(tmp_path / "dicom" / f"{number}", image(), SeriesInstanceUID=f"1.{number}", PatientID=f"p{number}")
    paths = list((tmp_path / "dicom" / "1").iterdir())
    next(path for path in paths if pydicom.dcmread(path).InstanceNumber == 4).unlink()
    with pytest.raises(SystemExit):
        prepare(str(tmp_path / "dicom"), str(tmp_path / "data"))
    errors = capsys.readouterr().err
    assert f"p1: {tmp_path / 'dicom' / '1'}" in errors and "expected a series with every slice, once." in errors
    assert record(tmp_path / "data")["numTraining"] == 1
