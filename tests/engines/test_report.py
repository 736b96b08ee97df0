"""``report.csv``: what it keeps, how it is written, and how a run ends."""

from __future__ import annotations

import csv
import logging
import os
from pathlib import Path

import pytest

from dbisl.engines import ArchiveReport, ScanResult
from dbisl.engines.report import FAILED, SEGMENTED, SKIPPED, UNFINISHED
from dbisl.utils import InputError

CLASSES = ["background", "organ", "tumour"]


def new_report(folder: Path, class_names: list[str] = CLASSES) -> ArchiveReport:
    """Return the report of a new run, after it has read the rows of earlier runs."""
    report = ArchiveReport(str(folder), class_names)
    report.read()
    return report


def read(folder: Path) -> list[dict[str, str]]:
    with (folder / "report.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_cells_of_a_scan(tmp_path: Path) -> None:
    report = new_report(tmp_path)
    for name in ("a_seg.nii.gz", "a_sdm.nii.gz"):
        (tmp_path / name).touch()
    report.outputs["a.nii.gz"] = ["a_seg.nii.gz", "a_sdm.nii.gz", "not_written.nii.gz"]
    volumes = {"organ": 12.34567, "tumour": 0.0}
    report.add(ScanResult("a.nii.gz", SEGMENTED, seconds=1.26, volumes_ml=volumes, uncertainty=0.123456))
    assert read(tmp_path) == [
        {
            "case": "a.nii.gz",
            "status": "segmented",
            "seconds": "1.3",
            "organ (ml)": "12.346",
            "tumour (ml)": "0.000",
            "uncertainty": "0.1235",
            "files": "a_seg.nii.gz;a_sdm.nii.gz",
            "reason": "",
            "warning": "",
        }
    ]


def test_a_new_run_reads_what_an_earlier_one_wrote(tmp_path: Path) -> None:
    (tmp_path / "a_seg.nii.gz").touch()
    first = new_report(tmp_path)
    first.outputs["a.nii.gz"] = ["a_seg.nii.gz"]
    result = ScanResult("a.nii.gz", SEGMENTED, seconds=1.5, volumes_ml={"organ": 2.0}, uncertainty=0.25)
    first.add(result)
    second = new_report(tmp_path)
    assert second.earlier("a.nii.gz") == result
    assert second.earlier("b.nii.gz") is None
    assert second.files() == {os.path.realpath(tmp_path / "a_seg.nii.gz")}
    assert not second.results


def test_a_scan_has_one_row_whatever_path_leads_to_it(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    report = new_report(tmp_path)
    report.add(ScanResult(str(tmp_path / "a.nii.gz"), FAILED, reason="broken"))
    report.add(ScanResult(str(tmp_path / "link" / "a.nii.gz"), SEGMENTED, seconds=1.0))
    assert [row["status"] for row in read(tmp_path)] == [SEGMENTED]


def test_a_failed_scan_that_no_longer_exists_loses_its_row(tmp_path: Path) -> None:
    kept, gone = tmp_path / "kept.nii.gz", tmp_path / "gone.nii.gz"
    kept.touch()
    report = new_report(tmp_path)
    for scan in (kept, gone):
        report.add(ScanResult(str(scan), FAILED, reason="broken"))
    report.add(ScanResult("segmented_and_gone.nii.gz", SEGMENTED, seconds=1.0))
    new_report(tmp_path).write()
    assert [Path(row["case"]).name for row in read(tmp_path)] == ["kept.nii.gz", "segmented_and_gone.nii.gz"]


def test_classes_of_other_models_keep_their_columns(tmp_path: Path) -> None:
    new_report(tmp_path).add(ScanResult("a.nii.gz", SEGMENTED, seconds=1.0, volumes_ml={"organ": 1.0}))
    other = new_report(tmp_path, ["background", "vessel"])
    other.add(ScanResult("b.nii.gz", SEGMENTED, seconds=1.0, volumes_ml={"vessel": 2.0}))
    first, second = read(tmp_path)
    assert (first["organ (ml)"], first["vessel (ml)"]) == ("1.000", "")
    assert (second["organ (ml)"], second["vessel (ml)"]) == ("", "2.000")


def test_a_scan_at_work_is_on_disk_with_its_files(tmp_path: Path) -> None:
    report = new_report(tmp_path)
    report.outputs["a.nii.gz"] = ["a_seg.nii.gz"]
    report.begin("a.nii.gz")
    assert [(row["status"], row["files"]) for row in read(tmp_path)] == [(UNFINISHED, "a_seg.nii.gz")]


def test_paths_that_are_not_unicode_come_back(tmp_path: Path) -> None:
    case = os.fsdecode(b"\xff.nii.gz")
    new_report(tmp_path).add(ScanResult(case, SEGMENTED, seconds=1.0))
    earlier = new_report(tmp_path).earlier(case)
    assert earlier is not None and earlier.case == case


def test_a_report_that_cannot_be_finished_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = new_report(tmp_path)
    report.add(ScanResult("a.nii.gz", SEGMENTED, seconds=1.0))
    before = report.path.read_bytes()

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(csv.DictWriter, "writerows", full)
    with pytest.raises(OSError, match="no space left"):
        report.add(ScanResult("b.nii.gz", SEGMENTED, seconds=1.0))
    assert report.path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["report.csv"]


def test_files_that_are_not_a_report(tmp_path: Path) -> None:
    path = tmp_path / "report.csv"
    path.write_text("name,result\nx,1\n")
    with pytest.raises(InputError, match=r"report.csv has the columns \['name', 'result'\]: expected \['case',"):
        new_report(tmp_path)
    path.write_text('case,status,seconds,uncertainty,files,reason\na.nii.gz,segmented,1.0,"0,5",,\n')
    with pytest.raises(InputError, match=r"report.csv, the row of a.nii.gz: could not convert .*; expected a number"):
        new_report(tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match=r"report.csv is a folder: expected the report of an earlier run"):
        new_report(tmp_path)


def test_a_run_ends_with_its_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    report = new_report(tmp_path)
    with caplog.at_level(logging.INFO):
        report.add(ScanResult("a.nii.gz", SEGMENTED, seconds=1.0))
        report.add(ScanResult("b.nii.gz", SKIPPED, seconds=1.0))
        report.finish()
    assert caplog.messages == ["a.nii.gz segmented in 1.0 s", f"2 scans: 1 segmented, 1 skipped; see {report.path}"]


def test_a_run_with_failures_ends_with_their_reasons(tmp_path: Path) -> None:
    report = new_report(tmp_path)
    report.add(ScanResult("good.nii.gz", SEGMENTED, seconds=1.0))
    for index in range(12):
        report.add(ScanResult(f"{index}.nii.gz", FAILED, reason=f"{index}.nii.gz is broken."))
    with pytest.raises(InputError) as error:
        report.finish()
    heading, *reasons, more = str(error.value).splitlines()
    assert heading == "12 of 13 scans failed:"
    assert reasons == [f"{index}.nii.gz is broken." for index in range(10)]
    assert more.startswith("... and 2 more")


def test_a_warning_is_logged_and_stays_in_the_report(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    report = new_report(tmp_path)
    result = ScanResult("a.nii.gz", SEGMENTED, seconds=1.0, warning="unlike the training scans: voxels of 9 mm")
    with caplog.at_level(logging.WARNING):
        report.add(result)
    assert caplog.messages == ["a.nii.gz is unlike the training scans: voxels of 9 mm"]
    assert new_report(tmp_path).earlier("a.nii.gz") == result


def test_a_report_of_an_earlier_version_has_no_warnings(tmp_path: Path) -> None:
    header = "case,status,seconds,uncertainty,files,reason"
    (tmp_path / "report.csv").write_text(f"{header}\na.nii.gz,segmented,1.0,,,\n")
    report = new_report(tmp_path)
    report.write()
    assert [(row["case"], row["warning"]) for row in read(tmp_path)] == [("a.nii.gz", "")]
