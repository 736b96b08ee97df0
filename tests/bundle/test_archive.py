"""Inference over archives of NIfTI files: broken files, options, earlier runs, and what is left on disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigParser

from dbisl.engines import ArchiveEvaluator
from dbisl.utils import InputError, case_name
from tests.bundle.archives import AFFINE, GOOD, Inference, write_scan


@pytest.fixture
def inference(root: Path, tmp_path: Path) -> Inference:
    return Inference(root, tmp_path)


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (
        lambda p: p.write_bytes(write_scan(p, GOOD).read_bytes()[:5000]),
        "cannot be read (Compressed file ended",
    ),
    "empty": (lambda p: p.write_bytes(b""), "cannot be read (Empty file"),
    "text": (lambda p: p.write_text("no scan"), "is not a gzip file): expected a complete NIfTI file"),
    "nan": (lambda p: write_scan(p, np.where(GOOD > 2, np.nan, GOOD)), "voxels that are NaN or infinite"),
    "constant": (lambda p: write_scan(p, np.full_like(GOOD, 7)), "has the value 7 in every voxel: expected an image"),
    "flat": (lambda p: write_scan(p, GOOD[..., 0]), "has the shape 20 x 24: expected 3 axes"),
    "series": (lambda p: write_scan(p, np.stack([GOOD] * 5, -1)), "has the shape 20 x 24 x 22 x 5: expected 3 axes"),
    "nothing": (lambda p: write_scan(p, GOOD[:, :0]), "has the shape 20 x 0 x 22: expected no axis of size 0"),
    "channels": (lambda p: write_scan(p, np.stack([GOOD] * 2, -1)), "has the shape 20 x 24 x 22 x 2: expected 3 axes"),
}


def test_broken_files_are_reported_and_the_others_segmented(tmp_path: Path, inference: Inference) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    for index in range(20):
        write_scan(scans / f"good_{index:02}.nii.gz", GOOD + index)
    for name, (make, _) in BROKEN.items():
        make(scans / f"{name}.nii.gz")
    with pytest.raises(InputError, match="9 of 29 scans failed"):
        inference.run(str(scans))
    rows = {case_name(row["case"]): row for row in inference.rows()}
    assert {name for name, row in rows.items() if row["status"] == "failed"} == set(BROKEN)
    for name, (_, reason) in BROKEN.items():
        assert reason in rows[name]["reason"] and rows[name]["case"] in rows[name]["reason"]
    assert sum(row["status"] == "segmented" for row in rows.values()) == 20
    written = {path.name for path in inference.output_dir.iterdir()}
    assert written == {"report.csv", *(f"good_{index:02}_seg.nii.gz" for index in range(20))}


def test_report_measures_what_was_written(tmp_path: Path, inference: Inference) -> None:
    scan = write_scan(tmp_path / "scans" / "one.nii.gz", GOOD)
    inference.run(str(scan))
    (row,) = inference.rows()
    segmentation = nib.nifti1.load(inference.output_dir / "one_seg.nii.gz")
    classes = np.asarray(segmentation.dataobj)
    assert classes.shape == GOOD.shape and classes.dtype == np.uint8
    np.testing.assert_allclose(segmentation.affine, AFFINE)
    for index, name in ((1, "anterior hippocampus (ml)"), (2, "posterior hippocampus (ml)")):
        assert float(row[name]) == pytest.approx(np.count_nonzero(classes == index) * 1.5 / 1000, abs=6e-4)
    assert row["status"] == "segmented" and float(row["seconds"]) >= 0


def test_a_second_run_skips_segmented_scans(tmp_path: Path, inference: Inference) -> None:
    scans = [write_scan(tmp_path / "scans" / f"{name}.nii.gz", GOOD) for name in ("a", "b")]
    inference.run([str(scans[0])])
    before = (inference.output_dir / "a_seg.nii.gz").stat().st_mtime_ns
    inference.run([str(scan) for scan in scans], skip_existing=True)
    rows = inference.rows()
    assert [row["status"] for row in rows] == ["skipped", "segmented"]
    # The report keeps what the first run measured. It equals the new row, because both scans are the same.
    assert all(rows[0][name] == rows[1][name] != "" for name in rows[0] if name.endswith("(ml)"))
    assert (inference.output_dir / "a_seg.nii.gz").stat().st_mtime_ns == before


def test_a_scan_without_its_maps_is_not_skipped(inference: Inference) -> None:
    scan = str(write_scan(inference.output_dir / "one.nii.gz", GOOD))  # its segmentation and map will lie beside it
    inference.run(scan)
    for status in ("segmented", "skipped"):
        inference.run(str(inference.output_dir), ("maps.json",), maps=["entropy"], skip_existing=True)
        assert [(Path(row["case"]).name, row["status"]) for row in inference.rows()] == [("one.nii.gz", status)]
    assert inference.images() == {"one.nii.gz", "one_seg.nii.gz", "one_entropy.nii.gz"}


def test_the_report_keeps_the_rows_of_other_runs(tmp_path: Path, inference: Inference) -> None:
    scans = [str(write_scan(tmp_path / name / f"{name}.nii.gz", GOOD)) for name in ("a", "b")]
    for scan in scans:
        inference.run(scan)
    assert [(row["case"], row["status"]) for row in inference.rows()] == [(scan, "segmented") for scan in scans]
    before = inference.rows()
    inference.run(scans[1], class_names=["background", "left", "right"])  # as another model has
    rows = inference.rows()
    assert {name: rows[0][name] for name in before[0]} == before[0]
    assert rows[1]["left (ml)"] and not rows[1]["anterior hippocampus (ml)"]


def test_nothing_of_another_scan_or_program_is_overwritten(tmp_path: Path, inference: Inference) -> None:
    mine = write_scan(inference.output_dir / "one_seg.nii.gz", np.ones_like(GOOD))  # from an annotator, under our name
    before = mine.read_bytes()
    one, other = (str(write_scan(tmp_path / folder / "one.nii.gz", GOOD)) for folder in ("a", "b"))
    with pytest.raises(InputError, match=r"one_seg.nii.gz exists, and .*report.csv does not list it .* of .*a/one"):
        inference.run(one)
    assert mine.read_bytes() == before
    mine.unlink()
    inference.run(one)
    before = mine.read_bytes()
    for skip_existing in (True, False):
        with pytest.raises(InputError, match=r"does not list it as a file of .*b/one.nii.gz"):
            inference.run(other, skip_existing=skip_existing)
    assert mine.read_bytes() == before


def test_a_failed_or_unfinished_scan_is_segmented_again(tmp_path: Path, inference: Inference) -> None:
    scan = write_scan(tmp_path / "scans" / "one.nii.gz", GOOD)
    inference.run(str(scan))
    whole = scan.read_bytes()
    scan.write_bytes(whole[:5000])
    with pytest.raises(InputError, match="1 of 1 scans failed"):
        inference.run(str(scan))
    assert inference.rows()[0]["files"] == "one_seg.nii.gz"  # from the first run
    scan.write_bytes(whole)
    inference.run(str(scan), skip_existing=True)
    (row,) = inference.rows()
    assert row["status"] == "segmented" and not row["reason"]
    path = inference.output_dir / "report.csv"
    path.write_text(path.read_text().replace("segmented", "unfinished"))  # as a stopped run leaves it
    inference.run(str(scan), skip_existing=True)
    assert inference.statuses() == ["segmented"]


def test_a_stopped_run_leaves_its_files_in_the_report(tmp_path: Path, inference: Inference) -> None:
    scan = write_scan(tmp_path / "scans" / "one.nii.gz", GOOD)

    class Stopped(BaseException):
        pass

    def stop(*args: object, **kwargs: object) -> None:
        raise Stopped

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(ArchiveEvaluator, "_measure", stop)  # after the segmentation is written, before its row is
        inference.run(str(scan))
    assert [(row["status"], row["files"]) for row in inference.rows()] == [("unfinished", "one_seg.nii.gz")]
    inference.run(str(scan))
    assert inference.statuses() == ["segmented"]


def test_a_file_name_that_is_not_unicode(tmp_path: Path, inference: Inference) -> None:
    scan = Path(os.fsdecode(os.fsencode(tmp_path / "scans") + b"/\xff.nii.gz"))
    write_scan(scan, GOOD)
    inference.run(str(scan.parent))
    inference.run(str(scan.parent), skip_existing=True)
    assert len(inference.images()) == 1


def test_wrong_paths_in_a_list_are_reported(tmp_path: Path, inference: Inference) -> None:
    good = write_scan(tmp_path / "scans" / "GOOD.NII.GZ", GOOD)
    text = tmp_path / "scans" / "notes.txt"
    text.write_text("no scan")
    (tmp_path / "scans" / "link.nii.gz").symlink_to(tmp_path / "gone.nii.gz")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="4 of 5 scans failed"):
        inference.run([str(tmp_path / "scans"), str(tmp_path / "nowhere"), str(text), str(empty)], separate_folder=True)
    rows = {Path(row["case"]).name: row for row in inference.rows()}
    assert rows.pop(good.name)["status"] == "segmented"
    for name, reason in {
        "link.nii.gz": "link.nii.gz does not exist: expected a NIfTI file",
        "nowhere": "nowhere does not exist: expected a folder with",
        "notes.txt": "notes.txt ends in neither .nii.gz nor .nii: expected a folder with",
        "empty": "empty has no scans: expected a folder with",
    }.items():
        assert reason in rows.pop(name)["reason"]
    assert not rows
    assert {path.name for path in inference.output_dir.iterdir()} == {"GOOD", "report.csv"}
    for path, reason in ((text, "ends in neither"), (empty, "has no scans"), (tmp_path / "nowhere", "does not exist")):
        with pytest.raises(InputError, match=f"dataset_dir .*{path.name} {reason}"):
            inference.run(str(path))


@pytest.mark.parametrize("files", [pytest.param((), id="segmentation"), pytest.param(("maps.json",), id="maps")])
def test_a_scan_of_one_slice_keeps_its_three_axes(tmp_path: Path, inference: Inference, files: tuple[str, ...]) -> None:
    scan = write_scan(tmp_path / "scans" / "one.nii.gz", GOOD[:, :, :1])
    inference.run(str(scan), files)
    for path in inference.output_dir.glob("*.nii.gz"):
        image = nib.nifti1.load(path)
        assert image.shape[:3] == (*GOOD.shape[:2], 1)
        np.testing.assert_allclose(image.affine, AFFINE)
        assert image.header.get_xyzt_units()[0] == "mm"


def test_maps_leave_the_segmentation_as_it_is(tmp_path: Path, inference: Inference) -> None:
    rng = np.random.default_rng(1)
    scan = tmp_path / "scans" / "one.nii.gz"
    scan.parent.mkdir()
    affine = np.diag([0.8, 1.2, 1.5, 1.0])
    affine[0, 1] = 0.3  # oblique, so that all voxels are interpolated
    nib.save(nib.nifti1.Nifti1Image(rng.normal(size=(30, 26, 24)).astype(np.float32), affine), scan)
    inference.run(str(scan))
    (plain,) = inference.output_dir.glob("*_seg.nii.gz")
    before = np.asarray(nib.nifti1.load(plain).dataobj)
    inference.run(str(scan), ("maps.json",))
    after = np.asarray(nib.nifti1.load(plain).dataobj)
    assert len(np.unique(before)) > 1
    assert np.mean(before != after) < 1e-3  # interpolation may round differently


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"keep_largest": 1, "fill_holes": [7], "flips": [3], "overlap": 1.0},
            "(?s)overlap is 1.0.*keep_largest is 1.*fill_holes is .7.*flips is .3",
        ),
        ({"patch_size": 16}, "patch_size is 16: expected a list of 2 or 3 whole numbers"),
        ({"patch_size": [20, 16, 16]}, r"patch_size is \[20, 16, 16\]: expected a multiple of 8 on axis 0, not 20"),
        ({"spacing": [1.0, float("nan"), 1.0]}, r"spacing is \[1.0, nan, 1.0\]: expected 3 positive numbers"),
        ({"fused_output": False}, "pred has 9 channels; expected 3"),
        ({"output_postfix": "../seg"}, "output_postfix is '../seg': expected the end of a file name, without '/'"),
        ({"device": "cuda:99"}, "device is 'cuda:99', which cannot be used here"),
        ({"output_dir": "/proc/none"}, "output_dir /proc/none cannot be written to"),
        ({"ckpt_path": __file__}, "test_archive.py has no weights .*an exported network needs exported.json"),
    ],
)
def test_a_wrong_option_is_one_sentence(
    tmp_path: Path, inference: Inference, options: dict[str, object], sentence: str
) -> None:
    scan = write_scan(tmp_path / "scans" / "one.nii.gz", GOOD)
    with pytest.raises(InputError, match=sentence):
        inference.run(str(scan), **options)


def test_segmentations_may_lie_beside_their_scans(inference: Inference) -> None:
    scan = write_scan(inference.output_dir / "one.nii.gz", GOOD)  # the output folder is the input folder
    before = scan.read_bytes()
    with pytest.raises(InputError, match="would be overwritten by its segmentation"):
        inference.run(str(inference.output_dir), output_postfix="")
    assert scan.read_bytes() == before
    for _ in range(2):  # the second time the segmentation lies beside the scan
        inference.run(str(inference.output_dir))
        assert [Path(row["case"]).name for row in inference.rows()] == ["one.nii.gz"]
    assert {path.name for path in inference.output_dir.iterdir()} == {"one.nii.gz", "one_seg.nii.gz", "report.csv"}


def test_band_of_a_data_set_reaches_the_maps_in_either_order(root: Path) -> None:
    configs = root / "bundle" / "configs"
    for files in (("maps.json", "datasets/la.yaml"), ("datasets/la.yaml", "maps.json")):
        parser = ConfigParser()
        parser.read_config([str(configs / name) for name in ("inference.json", *files)])
        assert parser["sdm_band"] == 3.125


def test_single_task_network_has_only_the_maps_of_one_task(tmp_path: Path, inference: Inference) -> None:
    inference.save_weights(dual_task=False)
    scan = write_scan(tmp_path / "scans" / "one.nii.gz", GOOD)
    with pytest.raises(InputError, match=r"some of \['probability', 'entropy'\]; the others need the predictions of"):
        inference.run(str(scan), ("maps.json",), dual_task=False)
    assert not inference.images()
    inference.run(str(scan), ("maps.json",), maps=["probability", "entropy"], dual_task=False)
    assert inference.statuses() == ["segmented"]
    assert inference.images() == {"one_seg.nii.gz", "one_probability.nii.gz", "one_entropy.nii.gz"}


def test_scans_of_several_channels(tmp_path: Path, inference: Inference) -> None:
    inference.save_weights(in_channels=2)
    write_scan(tmp_path / "scans" / "two.nii.gz", np.stack([GOOD, 3 * GOOD[::-1] + 100], axis=-1))
    write_scan(tmp_path / "scans" / "one.nii.gz", GOOD)
    with pytest.raises(InputError, match="1 of 2 scans failed"):
        inference.run(str(tmp_path / "scans"), in_channels=2)
    rows = {Path(row["case"]).name: row for row in inference.rows()}
    assert "expected 3 axes and a last one of size 2 (in_channels is 2)" in rows["one.nii.gz"]["reason"]
    assert rows["two.nii.gz"]["status"] == "segmented"
    assert nib.nifti1.load(inference.output_dir / "two_seg.nii.gz").shape == GOOD.shape


def test_maps_lie_beside_the_segmentation(tmp_path: Path, inference: Inference) -> None:
    scan = write_scan(tmp_path / "scans" / "one.nii.gz", GOOD)
    inference.run(str(scan), ("maps.json",), separate_folder=True, keep_largest=[1, 2], fill_holes=[1, 2], flips=[0])
    maps = {
        path.name.removeprefix("one_").removesuffix(".nii.gz"): np.asarray(nib.nifti1.load(path).dataobj)
        for path in (inference.output_dir / "one").iterdir()
    }
    assert set(maps) == {"seg", "probability", "sdm", "entropy", "disagreement"}
    assert maps["probability"].shape == (*GOOD.shape, 3)
    np.testing.assert_allclose(maps["probability"].sum(axis=-1), 1, atol=1e-5)
    assert 1 < np.abs(maps["sdm"]).max() <= 5  # millimetres, up to the band
    p = maps["probability"].astype(np.float64)
    np.testing.assert_allclose(maps["entropy"], -(p * np.log(p)).sum(axis=-1) / np.log(3), atol=1e-5)
    assert (maps["disagreement"] <= maps["entropy"] + 1e-5).all() and maps["disagreement"].min() >= 0


def test_only_the_maps_that_are_asked_for(tmp_path: Path, inference: Inference) -> None:
    scan = write_scan(tmp_path / "scans" / "one.nii.gz", GOOD)
    inference.run(str(scan), ("maps.json",), maps=["entropy"])
    assert inference.images() == {"one_seg.nii.gz", "one_entropy.nii.gz"}
