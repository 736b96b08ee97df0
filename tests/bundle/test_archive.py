"""Inference over real archives: broken files, DICOM, options, and what is left on disk."""

from __future__ import annotations

import csv
import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from dbisl.cases import InputError
from dbisl.networks import DualTaskVNet

Segment = Callable[..., None]
Report = Callable[[], list[dict[str, str]]]
GOOD = np.random.default_rng(0).normal(size=(20, 24, 22)).astype(np.float32)


def write(path: Path, voxels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.nifti1.Nifti1Image(voxels, np.diag([1.0, 1.0, 1.5, 1.0])), path)
    return path


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "model.pt"
    torch.save(DualTaskVNet(out_channels=3, features=4, levels=4).state_dict(), path)
    return path


@pytest.fixture
def segment(root: Path, tmp_path: Path, weights: Path) -> Segment:
    """``segment(dataset_dir, config files, key=value, ...)``: runs inference into ``tmp_path / "out"``."""

    def run(dataset_dir: Any, files: tuple[str, ...] = (), **options: Any) -> None:
        small = {"network_def#features": 4, "patch_size": [16, 16, 16], "device": "cpu", "amp": False}
        workflow = ConfigWorkflow(
            config_file=[str(root / "bundle" / "configs" / name) for name in ("inference.json", *files)],
            workflow_type="infer",
            bundle_root=str(root / "bundle"),
            logging_file=False,
            **{
                "dataset_dir": dataset_dir,
                "output_dir": str(tmp_path / "out"),
                "ckpt_path": str(weights),
                **small,
                **options,
            },
        )
        workflow.initialize()
        workflow.run()

    return run


@pytest.fixture
def report(tmp_path: Path) -> Report:
    def read() -> list[dict[str, str]]:
        with (tmp_path / "out" / "report.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    return read


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (lambda p: p.write_bytes(write(p, GOOD).read_bytes()[:5000]), "cannot be read (Compressed file ended"),
    "empty": (lambda p: p.write_bytes(b""), "cannot be read (Empty file"),
    "text": (lambda p: p.write_text("no scan"), "is not a gzip file): expected a complete NIfTI file"),
    "nan": (lambda p: write(p, np.where(GOOD > 2, np.nan, GOOD)), "voxels that are NaN or infinite"),
    "constant": (lambda p: write(p, np.full_like(GOOD, 7)), "has the value 7 in every voxel: expected an image"),
    "flat": (lambda p: write(p, GOOD[..., 0]), "has the shape 20 x 24: expected 3 axes"),
    "series": (lambda p: write(p, np.stack([GOOD] * 5, -1)), "has the shape 20 x 24 x 22 x 5: expected 3 axes"),
    "nothing": (lambda p: write(p, GOOD[:, :0]), "has the shape 20 x 0 x 22: expected no axis of size 0"),
    "channels": (lambda p: write(p, np.stack([GOOD] * 2, -1)), "has the shape 20 x 24 x 22 x 2: expected 3 axes"),
}


def test_broken_files_are_reported_and_the_others_segmented(tmp_path: Path, segment: Segment, report: Report) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    for index in range(20):
        write(scans / f"good_{index:02}.nii.gz", GOOD + index)
    for name, (make, _) in BROKEN.items():
        make(scans / f"{name}.nii.gz")
    with pytest.raises(InputError, match="9 of 29 scans failed"):
        segment(str(scans))
    rows = {Path(row["case"]).name.split(".")[0]: row for row in report()}
    assert {name for name, row in rows.items() if row["status"] == "failed"} == set(BROKEN)
    for name, (_, reason) in BROKEN.items():
        assert reason in rows[name]["reason"] and rows[name]["case"] in rows[name]["reason"]
    assert sum(row["status"] == "segmented" for row in rows.values()) == 20
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"report.csv", *(f"good_{index:02}_seg.nii.gz" for index in range(20))}


def test_report_measures_what_was_written(tmp_path: Path, segment: Segment, report: Report) -> None:
    scan = write(tmp_path / "scans" / "one.nii.gz", GOOD)
    segment(str(scan))
    (row,) = report()
    answer = nib.nifti1.load(tmp_path / "out" / "one_seg.nii.gz")
    classes = np.asarray(answer.dataobj)
    assert classes.shape == GOOD.shape and classes.dtype == np.uint8
    np.testing.assert_allclose(answer.affine, np.diag([1.0, 1.0, 1.5, 1.0]))
    for index, name in ((1, "anterior hippocampus (ml)"), (2, "posterior hippocampus (ml)")):
        assert float(row[name]) == pytest.approx(np.count_nonzero(classes == index) * 1.5 / 1000, abs=6e-4)
    assert row["status"] == "segmented" and float(row["seconds"]) >= 0


def test_a_second_run_skips_what_is_there(tmp_path: Path, segment: Segment, report: Report) -> None:
    scans = [write(tmp_path / "scans" / f"{name}.nii.gz", GOOD) for name in ("a", "b")]
    segment([str(scans[0])])
    before = (tmp_path / "out" / "a_seg.nii.gz").stat().st_mtime_ns
    segment([str(scan) for scan in scans], skip_existing=True)
    rows = report()
    assert [row["status"] for row in rows] == ["skipped", "segmented"]
    # What the first run measured is not lost: both scans are the same.
    assert all(rows[0][name] == rows[1][name] != "" for name in rows[0] if name.endswith("(ml)"))
    assert (tmp_path / "out" / "a_seg.nii.gz").stat().st_mtime_ns == before


def test_scans_of_one_name_are_kept_apart(tmp_path: Path, segment: Segment) -> None:
    scans = [str(write(tmp_path / folder / "scan.nii.gz", GOOD)) for folder in ("a", "b")]
    with pytest.raises(InputError, match="would both be written to"):
        segment(scans)
    assert not (tmp_path / "out" / "report.csv").exists()


def test_the_users_scans_are_safe(tmp_path: Path, segment: Segment, report: Report) -> None:
    scan = write(tmp_path / "out" / "one.nii.gz", GOOD)  # the output folder is the input folder
    before = scan.read_bytes()
    with pytest.raises(InputError, match="would be overwritten by its segmentation"):
        segment(str(tmp_path / "out"), output_postfix="")
    assert scan.read_bytes() == before
    for _ in range(2):  # the second time the first answer lies beside the scan
        segment(str(tmp_path / "out"))
        assert [Path(row["case"]).name for row in report()] == ["one.nii.gz"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"one.nii.gz", "one_seg.nii.gz", "report.csv"}


def test_names_full_of_dots_are_kept(tmp_path: Path, segment: Segment) -> None:
    scans = [str(write(tmp_path / "scans" / f"1.2.840.{index}.nii.gz", GOOD)) for index in (1, 2)]
    segment(scans)
    written = {path.name for path in (tmp_path / "out").glob("*.nii.gz")}
    assert written == {"1.2.840.1_seg.nii.gz", "1.2.840.2_seg.nii.gz"}


def test_band_of_a_data_set_reaches_the_maps_in_either_order(root: Path) -> None:
    configs = root / "bundle" / "configs"
    for files in (("maps.json", "datasets/la.yaml"), ("datasets/la.yaml", "maps.json")):
        parser = ConfigParser()
        parser.read_config([str(configs / name) for name in ("inference.json", *files)])
        assert parser["sdm_band"] == 3.125


def test_single_task_network_has_maps_without_a_distance(
    tmp_path: Path, weights: Path, segment: Segment, report: Report
) -> None:
    torch.save(DualTaskVNet(out_channels=3, features=4, levels=4, regression=False).state_dict(), weights)
    scan = write(tmp_path / "scans" / "one.nii.gz", GOOD)
    segment(str(scan), ("maps.json",), **{"network_def#regression": False})
    assert [row["status"] for row in report()] == ["segmented"]
    written = {path.name for path in (tmp_path / "out").glob("*.nii.gz")}
    assert written == {f"one_{name}.nii.gz" for name in ("seg", "probability", "entropy", "disagreement")}


def test_scans_of_several_channels(tmp_path: Path, weights: Path, segment: Segment, report: Report) -> None:
    torch.save(DualTaskVNet(in_channels=2, out_channels=3, features=4, levels=4).state_dict(), weights)
    write(tmp_path / "scans" / "two.nii.gz", np.stack([GOOD, 3 * GOOD[::-1] + 100], axis=-1))
    write(tmp_path / "scans" / "one.nii.gz", GOOD)
    with pytest.raises(InputError, match="1 of 2 scans failed"):
        segment(str(tmp_path / "scans"), in_channels=2)
    rows = {Path(row["case"]).name: row for row in report()}
    assert "expected 3 axes and a last one of size 2 (in_channels is 2)" in rows["one.nii.gz"]["reason"]
    assert rows["two.nii.gz"]["status"] == "segmented"
    assert nib.nifti1.load(tmp_path / "out" / "two_seg.nii.gz").shape == GOOD.shape


def test_maps_lie_beside_the_segmentation(tmp_path: Path, segment: Segment) -> None:
    scan = write(tmp_path / "scans" / "one.nii.gz", GOOD)
    segment(str(scan), ("maps.json",), separate_folder=True, keep_largest=[1, 2], fill_holes=[1, 2], flips=[0])
    maps = {
        path.name.removeprefix("one_").removesuffix(".nii.gz"): np.asarray(nib.nifti1.load(path).dataobj)
        for path in (tmp_path / "out" / "one").iterdir()
    }
    assert set(maps) == {"seg", "probability", "sdm", "entropy", "disagreement"}
    assert maps["probability"].shape == (*GOOD.shape, 3)
    np.testing.assert_allclose(maps["probability"].sum(axis=-1), 1, atol=1e-5)
    assert 1 < np.abs(maps["sdm"]).max() <= 5  # millimetres, up to the band
    p = maps["probability"].astype(np.float64)
    np.testing.assert_allclose(maps["entropy"], -(p * np.log(p)).sum(axis=-1) / np.log(3), atol=1e-5)
    assert (maps["disagreement"] <= maps["entropy"] + 1e-5).all() and maps["disagreement"].min() >= 0


def test_only_the_maps_that_are_asked_for(tmp_path: Path, segment: Segment) -> None:
    scan = write(tmp_path / "scans" / "one.nii.gz", GOOD)
    segment(str(scan), ("maps.json",), maps=["entropy"])
    assert {path.name for path in (tmp_path / "out").glob("*.nii.gz")} == {"one_seg.nii.gz", "one_entropy.nii.gz"}
    with pytest.raises(InputError, match=r"maps has \['entropies'\]: expected some of"):
        segment(str(scan), ("maps.json",), maps=["entropies"])


def write_series(folder: Path, voxels: np.ndarray) -> None:
    """A CT series of axial slices, 0.8 x 0.7 x 2 mm, with its first voxel at (-10, -20, 30) in patient coordinates."""
    folder.mkdir(parents=True)
    series, study = generate_uid(), generate_uid()
    for index in range(voxels.shape[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
        meta.MediaStorageSOPInstanceUID = generate_uid()
        path = folder / f"{index:03}.dcm"
        slice_ = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        slice_.SOPClassUID, slice_.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        slice_.SeriesInstanceUID, slice_.StudyInstanceUID, slice_.Modality = series, study, "CT"
        slice_.ContentDate = datetime.date(2026, 1, 1).strftime("%Y%m%d")
        slice_.ImageOrientationPatient, slice_.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-10, -20, 30 + 2 * index]
        slice_.PixelSpacing, slice_.SliceThickness, slice_.InstanceNumber = [0.7, 0.8], 2, index + 1
        plane = voxels[:, :, index].T  # rows are y
        slice_.Rows, slice_.Columns = plane.shape
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 16, 15, 1
        slice_.RescaleSlope, slice_.RescaleIntercept = 1, 0
        slice_.PixelData = np.ascontiguousarray(plane.astype(np.int16)).tobytes()
        pydicom.dcmwrite(path, slice_, enforce_file_format=True)


def test_dicom_series_is_segmented_as_the_same_scan_in_nifti(tmp_path: Path, segment: Segment, report: Report) -> None:
    voxels = (100 * GOOD).astype(np.int16)
    write_series(tmp_path / "scans" / "series", voxels)
    # The patient coordinates of DICOM are left and posterior where NIfTI's are right and anterior.
    affine = np.diag([-0.8, -0.7, 2.0, 1.0])
    affine[:3, 3] = 10, 20, 30
    nib.save(nib.nifti1.Nifti1Image(voxels, affine), tmp_path / "scans" / "scan.nii.gz")
    segment(str(tmp_path / "scans"))
    assert [row["status"] for row in report()] == ["segmented", "segmented"]
    series, scan = (nib.nifti1.load(tmp_path / "out" / f"{name}_seg.nii.gz") for name in ("series", "scan"))
    np.testing.assert_allclose(series.affine, affine, atol=1e-4)
    assert np.mean(np.asarray(series.dataobj) == np.asarray(scan.dataobj)) > 0.999
