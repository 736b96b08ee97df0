"""Inference over real archives: broken files, DICOM, options, and what is left on disk."""

from __future__ import annotations

import csv
import datetime
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.data import MetaTensor
from monai.transforms import SaveImage
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from dbisl.engines import ArchiveEvaluator
from dbisl.networks import DualTaskVNet
from dbisl.transforms import WholeNibabelWriter
from dbisl.utils import InputError

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


def test_skipping_looks_for_the_maps_too(tmp_path: Path, segment: Segment, report: Report) -> None:
    scan = str(write(tmp_path / "out" / "one.nii.gz", GOOD))  # beside its maps, which are no scans
    segment(scan)
    for status in ("segmented", "skipped"):
        segment(str(tmp_path / "out"), ("maps.json",), maps=["entropy"], skip_existing=True)
        assert [(Path(row["case"]).name, row["status"]) for row in report()] == [("one.nii.gz", status)]
    assert {path.name for path in (tmp_path / "out").glob("*.nii.gz")} == {
        f"one{name}.nii.gz" for name in ("", "_seg", "_entropy")
    }


def test_the_report_keeps_what_other_runs_measured(tmp_path: Path, segment: Segment, report: Report) -> None:
    scans = [str(write(tmp_path / name / f"{name}.nii.gz", GOOD)) for name in ("a", "b")]
    for scan in scans:
        segment(scan)
    assert [(row["case"], row["status"]) for row in report()] == [(scan, "segmented") for scan in scans]
    before = report()
    segment(scans[1], class_names=["background", "left", "right"])  # another model
    rows = report()
    assert {name: rows[0][name] for name in before[0]} == before[0]
    assert rows[1]["left (ml)"] and not rows[1]["anterior hippocampus (ml)"]


def test_nothing_of_another_scan_or_program_is_overwritten(tmp_path: Path, segment: Segment) -> None:
    mine = write(tmp_path / "out" / "one_seg.nii.gz", np.ones_like(GOOD))  # an annotator's, by our name
    before = mine.read_bytes()
    one, other = (str(write(tmp_path / folder / "one.nii.gz", GOOD)) for folder in ("a", "b"))
    with pytest.raises(InputError, match=r"one_seg.nii.gz is there, and by .*report.csv was not made of .*a/one"):
        segment(one)
    assert mine.read_bytes() == before
    mine.unlink()
    segment(one)
    before = mine.read_bytes()
    for skip in (True, False):
        with pytest.raises(InputError, match=r"was not made of .*b/one.nii.gz"):
            segment(other, skip_existing=skip)
    assert mine.read_bytes() == before
    (tmp_path / "out" / "report.csv").write_text("name,result\nx,1\n")
    with pytest.raises(InputError, match=r"report.csv has the columns \['name', 'result'\]: expected \['case',"):
        segment(one)


def test_files_are_known_by_the_scan_they_were_made_of(tmp_path: Path, segment: Segment, report: Report) -> None:
    for patient in ("p1", "p2"):
        write_series(tmp_path / "scans" / patient / "study" / "series", CT)
    segment(str(tmp_path / "scans" / "p1"))
    with pytest.raises(InputError, match=r"study_series_seg.nii.gz is there, and by .* was not made of .*p2"):
        segment(str(tmp_path / "scans" / "p2"), skip_existing=True)  # by the same name
    segment(str(tmp_path / "scans"))
    segment(str(tmp_path / "scans" / "p1"))
    (tmp_path / "link").symlink_to(tmp_path / "scans" / "p1")
    segment(str(tmp_path / "link"), skip_existing=True)
    rows = report()
    assert [row["status"] for row in rows] == ["skipped", "segmented"] and "/link/" in rows[0]["case"]
    assert rows[0]["files"] == "study_series_seg.nii.gz;p1_study_series_seg.nii.gz"
    entropy = tmp_path / "out" / "p2_study_series_entropy.nii.gz"
    entropy.write_text("of another program")
    with pytest.raises(InputError, match=r"p2_study_series_entropy.nii.gz is there, and by"):
        segment(str(tmp_path / "scans"), ("maps.json",), maps=["entropy"])
    with pytest.raises(InputError, match="output_postfix is 'entropy', the name of a map"):
        segment(str(tmp_path / "scans"), ("maps.json",), output_postfix="entropy")


def test_a_scan_that_failed_or_was_at_work_is_segmented_again(tmp_path: Path, segment: Segment, report: Report) -> None:
    scan = write(tmp_path / "scans" / "one.nii.gz", GOOD)
    segment(str(scan))
    whole = scan.read_bytes()
    scan.write_bytes(whole[:5000])
    with pytest.raises(InputError, match="1 of 1 scans failed"):
        segment(str(scan))
    assert report()[0]["files"] == "one_seg.nii.gz"  # of before
    scan.write_bytes(whole)
    segment(str(scan), skip_existing=True)
    (row,) = report()
    assert row["status"] == "segmented" and not row["reason"]
    path = tmp_path / "out" / "report.csv"
    path.write_text(path.read_text().replace("segmented", "unfinished"))  # as when it was stopped
    segment(str(scan), skip_existing=True)
    assert [row["status"] for row in report()] == ["segmented"]
    path.write_text(path.read_text().replace(row["uncertainty"], '"0,5"'))
    with pytest.raises(InputError, match=r"report.csv, the row of .*one.nii.gz: could not convert"):
        segment(str(scan))


def test_a_report_knows_its_files_while_a_scan_is_at_work(tmp_path: Path, segment: Segment, report: Report) -> None:
    scan = write(tmp_path / "scans" / "one.nii.gz", GOOD)

    class Stopped(BaseException):
        pass

    def stop(*args: object, **kwargs: object) -> None:
        raise Stopped

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(ArchiveEvaluator, "_measure", stop)  # the segmentation is written, its row not yet
        segment(str(scan))
    assert [(row["status"], row["files"]) for row in report()] == [("unfinished", "one_seg.nii.gz")]
    segment(str(scan))
    assert [row["status"] for row in report()] == ["segmented"]


def test_names_that_are_no_text_are_no_trouble(tmp_path: Path, segment: Segment) -> None:
    scan = Path(os.fsdecode(os.fsencode(tmp_path / "scans") + b"/\xff.nii.gz"))
    write(scan, GOOD)
    segment(str(scan.parent))
    segment(str(scan.parent), skip_existing=True)
    assert len(list((tmp_path / "out").glob("*_seg.nii.gz"))) == 1


def test_a_plane_keeps_its_two_axes(tmp_path: Path) -> None:
    save = SaveImage(
        output_dir=tmp_path, output_postfix="seg", writer=WholeNibabelWriter, resample=False, print_log=False
    )
    save(MetaTensor(torch.ones(1, 20, 24), meta={"filename_or_obj": "plane.nii.gz", "spatial_shape": [20, 24]}))
    (path,) = tmp_path.rglob("*.nii.gz")
    assert nib.nifti1.load(path).shape == (20, 24)


def test_a_list_with_a_wrong_path_goes_on(tmp_path: Path, segment: Segment, report: Report) -> None:
    good = write(tmp_path / "scans" / "GOOD.NII.GZ", GOOD)
    text = tmp_path / "scans" / "notes.txt"
    text.write_text("no scan")
    (tmp_path / "scans" / "link.nii.gz").symlink_to(tmp_path / "gone.nii.gz")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="4 of 5 scans failed"):
        segment([str(tmp_path / "scans"), str(tmp_path / "nowhere"), str(text), str(empty)], separate_folder=True)
    rows = {Path(row["case"]).name: row for row in report()}
    assert rows.pop(good.name)["status"] == "segmented"
    for name, reason in {
        "link.nii.gz": "link.nii.gz does not exist: expected a NIfTI file",
        "nowhere": "nowhere does not exist: expected a folder with",
        "notes.txt": "notes.txt ends in neither .nii.gz nor .nii: expected a folder with",
        "empty": "empty has no scans: expected a folder with",
    }.items():
        assert reason in rows.pop(name)["reason"]
    assert not rows
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"GOOD", "report.csv"}
    for path, reason in ((text, "ends in neither"), (empty, "has no scans"), (tmp_path / "nowhere", "does not exist")):
        with pytest.raises(InputError, match=f"dataset_dir .*{path.name} {reason}"):
            segment(str(path))


@pytest.mark.parametrize("files", [(), ("maps.json",)])
def test_a_scan_of_one_slice_keeps_its_three_axes(tmp_path: Path, segment: Segment, files: tuple[str, ...]) -> None:
    scan = write(tmp_path / "scans" / "one.nii.gz", GOOD[:, :, :1])
    segment(str(scan), files)
    for path in (tmp_path / "out").glob("*.nii.gz"):
        image = nib.nifti1.load(path)
        assert image.shape[:3] == (*GOOD.shape[:2], 1)
        np.testing.assert_allclose(image.affine, np.diag([1.0, 1.0, 1.5, 1.0]))
        assert image.header.get_xyzt_units()[0] == "mm"


def test_maps_leave_the_segmentation_as_it_is(tmp_path: Path, segment: Segment) -> None:
    rng = np.random.default_rng(1)
    scan = tmp_path / "scans" / "one.nii.gz"
    scan.parent.mkdir()
    affine = np.diag([0.8, 1.2, 1.5, 1.0])
    affine[0, 1] = 0.3  # oblique: everything is interpolated
    nib.save(nib.nifti1.Nifti1Image(rng.normal(size=(30, 26, 24)).astype(np.float32), affine), scan)
    segment(str(scan))
    (plain,) = (tmp_path / "out").glob("*_seg.nii.gz")
    before = np.asarray(nib.nifti1.load(plain).dataobj)
    segment(str(scan), ("maps.json",))
    after = np.asarray(nib.nifti1.load(plain).dataobj)
    assert len(np.unique(before)) > 1
    assert np.mean(before != after) < 1e-3  # the last digit of an interpolation


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"keep_largest": 1}, r"keep_largest is 1: expected a list of classes, of \[1, 2\]"),
        ({"fill_holes": [7]}, r"fill_holes is \[7\]: expected a list of classes, of \[1, 2\]"),
        ({"flips": [3]}, r"flips is \[3\]: expected a list of axes, of \[0, 1, 2\]"),
        ({"overlap": 1.0}, "overlap is 1.0: expected at least 0 and less than 1"),
        (
            {"overlap": [0.5, 0.5]},
            r"overlap is \[0.5, 0.5\]: expected at least 0 and less than 1, one number or one an",
        ),
        ({"patch_size": 16}, "patch_size is 16: expected a list of 2 or 3 whole numbers"),
        ({"spacing": [1.0, float("nan"), 1.0]}, r"spacing is \[1.0, nan, 1.0\]: expected 3 positive numbers"),
        ({"fused_slope": None}, "pred has 9 channels; expected 3, the probabilities of the fused answer"),
        ({"output_postfix": "../seg"}, "output_postfix is '../seg': expected what a file name ends in, without '/'"),
        ({"patch_size": [20, 16, 16]}, r"patch_size is \[20, 16, 16\]: expected a multiple of 8 on axis 0, not 20"),
        ({"device": "cuda:99"}, "device is 'cuda:99', which cannot be used here"),
        ({"output_dir": "/proc/none"}, "output_dir /proc/none cannot be written to"),
        ({"ckpt_path": __file__}, "test_archive.py has no weights .*an exported network needs exported.json"),
    ],
)
def test_a_wrong_option_is_one_sentence(
    tmp_path: Path, segment: Segment, options: dict[str, object], sentence: str
) -> None:
    scan = write(tmp_path / "scans" / "one.nii.gz", GOOD)
    with pytest.raises(InputError, match=sentence):
        segment(str(scan), **options)


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


def test_single_task_network_has_only_the_maps_of_one_answer(
    tmp_path: Path, weights: Path, segment: Segment, report: Report
) -> None:
    torch.save(DualTaskVNet(out_channels=3, features=4, levels=4, regression=False).state_dict(), weights)
    scan = write(tmp_path / "scans" / "one.nii.gz", GOOD)
    with pytest.raises(InputError, match=r"some of \['probability', 'entropy'\], all that a network with one answer"):
        segment(str(scan), ("maps.json",), **{"network_def#regression": False})
    assert not list((tmp_path / "out").glob("*.nii.gz"))
    segment(str(scan), ("maps.json",), maps=["probability", "entropy"], **{"network_def#regression": False})
    assert [row["status"] for row in report()] == ["segmented"]
    written = {path.name for path in (tmp_path / "out").glob("*.nii.gz")}
    assert written == {f"one_{name}.nii.gz" for name in ("seg", "probability", "entropy")}


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
    with pytest.raises(InputError, match=r"maps is \['entropies'\]: expected a list of some of"):
        segment(str(scan), ("maps.json",), maps=["entropies"])


def write_slice(path: Path, plane: np.ndarray, number: int, **tags: Any) -> None:
    """An axial CT slice, columns 0.8 and rows 0.7 mm apart, ``2 * number`` mm above (-10, -20, 30)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = generate_uid()
    slice_ = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    slice_.SOPClassUID, slice_.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    slice_.SeriesInstanceUID, slice_.StudyInstanceUID, slice_.Modality = "1.2.3", "1.2", "CT"
    slice_.ContentDate = datetime.date(2026, 1, 1).strftime("%Y%m%d")
    slice_.ImageOrientationPatient, slice_.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-10, -20, 30 + 2 * number]
    slice_.PixelSpacing, slice_.SliceThickness, slice_.InstanceNumber = [0.7, 0.8], 2, number + 1
    slice_.Rows, slice_.Columns = plane.shape
    slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
    slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 16, 15, 1
    slice_.RescaleSlope, slice_.RescaleIntercept = 1, 0
    slice_.PixelData = np.ascontiguousarray(plane.astype(np.int16)).tobytes()
    for name, value in tags.items():
        setattr(slice_, name, value)
    pydicom.dcmwrite(path, slice_, enforce_file_format=True)


def write_series(folder: Path, voxels: np.ndarray, ending: str = ".dcm") -> None:
    for index in range(voxels.shape[2]):
        write_slice(folder / f"{index:03}{ending}", voxels[:, :, index].T, index)  # rows are y


CT = (100 * GOOD).astype(np.int16)
BROKEN_SERIES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "two_series": (
        lambda p: write_slice(p / "x.dcm", CT[:, :, 0].T, 22, SeriesInstanceUID="1.2.4"),
        "x.dcm has the SeriesInstanceUID 1.2.4, but 000.dcm has 1.2.3: expected one series a folder",
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
        "x.dcm has the ImagePositionPatient nowhere: expected 3 numbers in each slice",
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


def test_broken_series_are_reported(tmp_path: Path, segment: Segment, report: Report) -> None:
    for name, (spoil, _) in BROKEN_SERIES.items():
        write_series(tmp_path / "scans" / name, CT)
        spoil(tmp_path / "scans" / name)
    with pytest.raises(InputError, match="12 of 12 scans failed"):
        segment(str(tmp_path / "scans"))
    rows = {Path(row["case"]).name: row["reason"] for row in report()}
    for name, (_, reason) in BROKEN_SERIES.items():
        assert reason in rows[name]
    with pytest.raises(InputError, match="is one file of a DICOM series: expected the folder that holds the series"):
        segment(str(tmp_path / "scans" / "missing_slice" / "003.dcm"))


def test_series_of_an_archive_are_found_at_any_depth_and_by_any_name(
    tmp_path: Path, segment: Segment, report: Report
) -> None:
    for patient in ("p1", "p2"):
        series = tmp_path / "scans" / patient / "study" / "series"
        write_series(series, CT, ending="")
        (series / "thumbnails").mkdir()
        (series / "notes.txt").write_text("no slice")
    (series / "loop").symlink_to(tmp_path / "scans")
    segment(str(tmp_path / "scans"))
    assert [row["status"] for row in report()] == ["segmented", "segmented"]
    written = {path.name for path in (tmp_path / "out").glob("*.nii.gz")}
    assert written == {f"{patient}_study_series_seg.nii.gz" for patient in ("p1", "p2")}


def test_tilted_slices_are_stacked_as_they_lie(tmp_path: Path, segment: Segment) -> None:
    for index in range(CT.shape[2]):
        position = [-10, -20 + 0.5 * index, round(30 + 0.625 * index, 1)]  # headers round
        tags = {"ImagePositionPatient": position, "InstanceNumber": (index * 5) % CT.shape[2]}  # interleaved
        write_slice(tmp_path / "tilted" / f"{index}", CT[:, :, index].T, index, **tags)
    segment(str(tmp_path / "tilted"))
    affine = nib.nifti1.load(tmp_path / "out" / "tilted_seg.nii.gz").affine
    np.testing.assert_allclose(affine[:3, 2], [0, -0.5, 0.625], atol=3e-3)


def test_dicom_series_is_segmented_as_the_same_scan_in_nifti(tmp_path: Path, segment: Segment, report: Report) -> None:
    write_series(tmp_path / "scans" / "series", CT)
    # The patient coordinates of DICOM are left and posterior where NIfTI's are right and anterior.
    affine = np.diag([-0.8, -0.7, 2.0, 1.0])
    affine[:3, 3] = 10, 20, 30
    nib.save(nib.nifti1.Nifti1Image(CT, affine), tmp_path / "scans" / "scan.nii.gz")
    segment(str(tmp_path / "scans"))
    assert [row["status"] for row in report()] == ["segmented", "segmented"]
    series, scan = (nib.nifti1.load(tmp_path / "out" / f"{name}_seg.nii.gz") for name in ("series", "scan"))
    np.testing.assert_allclose(series.affine, affine, atol=1e-4)
    assert np.mean(np.asarray(series.dataobj) == np.asarray(scan.dataobj)) > 0.999
