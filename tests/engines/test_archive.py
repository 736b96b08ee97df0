"""The plan of an inference over many scans, its options, and scans that fail."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import DataLoader, MetaTensor

from dbisl.data import describe_scans
from dbisl.engines import ArchiveDataset, ArchiveEvaluator, ArchiveReport, check_options, pending_cases
from dbisl.engines.report import FAILED, SEGMENTED, SKIPPED, ScanResult
from dbisl.transforms import ScanLayout
from dbisl.utils import InputError
from tests.data.make_scans import write_scan

OPTIONS: dict[str, Any] = {
    "num_classes": 3,
    "patch_size": [16, 16, 16],
    "patch_divisor": [8, 8, 8],
    "spacing": [1.0, 1.0, 1.0],
    "overlap": 0.5,
    "keep_largest": [],
    "fill_holes": [],
    "flips": [],
}


@pytest.fixture
def report(tmp_path: Path) -> ArchiveReport:
    return ArchiveReport(str(tmp_path / "out"), ["background", "organ"])


def cases(*scans: Path) -> list[dict[str, str]]:
    return [{"image": str(scan), "case": str(scan)} for scan in scans]


def layout(folder: Path, postfix: str = "seg") -> ScanLayout:
    return ScanLayout(str(folder), postfix)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"spacing": None},
        {"overlap": [0.5, 0, 0.25]},
        {"keep_largest": [1, 2], "fill_holes": [2], "flips": [0, 2]},
    ],
)
def test_options_that_can_be_used(options: dict[str, Any]) -> None:
    check_options(**{**OPTIONS, **options})
    with pytest.raises(InputError) as error:
        check_options(**{**OPTIONS, **options, "patch_divisor": [32, 8, 8]})
    assert str(error.value) == "patch_size is [16, 16, 16]: expected a multiple of 32 on axis 0, not 16; nearest is 32."


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"keep_largest": 1}, r"keep_largest is 1: expected a list of classes from \[1, 2\]"),
        ({"fill_holes": [7]}, r"fill_holes is \[7\]: expected a list of classes from \[1, 2\]"),
        ({"flips": [3]}, r"flips is \[3\]: expected a list of axes from \[0, 1, 2\]"),
        ({"overlap": 1.0}, "overlap is 1.0: expected at least 0 and less than 1"),
        (
            {"overlap": [0.5, 0.5]},
            r"overlap is \[0.5, 0.5\]: expected at least 0 and less than 1, one number or one",
        ),
        ({"patch_size": 16}, "patch_size is 16: expected a list of 2 or 3 whole numbers"),
        ({"patch_size": [20, 16, 16]}, r"patch_size is \[20, 16, 16\]: expected a multiple of 8 on axis 0, not 20"),
        ({"spacing": [1.0, float("nan"), 1.0]}, r"spacing is \[1.0, nan, 1.0\]: expected 3 positive numbers"),
    ],
)
def test_a_wrong_option_is_one_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as error:
        check_options(**{**OPTIONS, **options})
    assert len(str(error.value).splitlines()) == 1


def test_every_wrong_option_has_a_line() -> None:
    with pytest.raises(InputError) as error:
        check_options(**{**OPTIONS, "overlap": -1, "flips": [3], "fill_holes": None})
    assert [line.split()[0] for line in str(error.value).splitlines()] == ["overlap", "fill_holes", "flips"]


def test_all_scans_of_a_first_run_are_pending(tmp_path: Path, report: ArchiveReport) -> None:
    scans = cases(tmp_path / "a.nii.gz", tmp_path / "b.nii.gz")
    assert pending_cases(scans, report, layout(tmp_path / "out"), skip_existing=True, maps=["sdm"]) == scans
    assert report.outputs[scans[0]["case"]] == ["a_seg.nii.gz", "a_sdm.nii.gz"]


def test_a_segmented_scan_is_skipped_only_if_that_is_asked_for(tmp_path: Path, report: ArchiveReport) -> None:
    scans = cases(tmp_path / "a.nii.gz")
    pending_cases(scans, report, layout(tmp_path / "out"), skip_existing=False)
    (tmp_path / "out" / "a_seg.nii.gz").touch()
    report.add(ScanResult(scans[0]["case"], SEGMENTED, seconds=1.5))
    for skip_existing, pending in ((True, []), (False, scans)):
        second = ArchiveReport(str(tmp_path / "out"), ["background", "organ"])
        assert pending_cases(scans, second, layout(tmp_path / "out"), skip_existing=skip_existing) == pending
        assert [(one.status, one.seconds) for one in second.results] == ([] if pending else [(SKIPPED, 1.5)])


def test_segmentations_among_the_scans_are_not_scans(tmp_path: Path) -> None:
    report = ArchiveReport(str(tmp_path), ["background", "organ"])
    scans = cases(tmp_path / "a.nii.gz", tmp_path / "a_seg.nii.gz", tmp_path / "a_entropy.nii.gz")
    assert pending_cases(scans, report, layout(tmp_path), skip_existing=False) == scans[:1]


def test_scans_of_one_name_are_kept_apart(tmp_path: Path, report: ArchiveReport) -> None:
    scans = cases(tmp_path / "a" / "scan.nii.gz", tmp_path / "b" / "scan.nii.gz")
    with pytest.raises(InputError, match=r"a/scan.nii.gz and .*b/scan.nii.gz would both be written to .*_seg.nii.gz"):
        pending_cases(scans, report, layout(tmp_path / "out"), skip_existing=False)
    assert not report.path.exists()


def test_a_scan_is_never_overwritten(tmp_path: Path) -> None:
    report = ArchiveReport(str(tmp_path), ["background", "organ"])
    with pytest.raises(InputError, match=r"scan.nii.gz would be overwritten by its segmentation"):
        pending_cases(cases(tmp_path / "scan.nii.gz"), report, layout(tmp_path, postfix=""), skip_existing=False)


def test_a_file_of_another_program_is_never_overwritten(tmp_path: Path, report: ArchiveReport) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "scan_seg.nii.gz").touch()
    with pytest.raises(InputError, match=r"scan_seg.nii.gz exists, and .*report.csv does not list it as a file of"):
        pending_cases(cases(tmp_path / "scan.nii.gz"), report, layout(tmp_path / "out"), skip_existing=True)


def test_a_postfix_that_is_the_name_of_a_map(tmp_path: Path, report: ArchiveReport) -> None:
    with pytest.raises(InputError, match="output_postfix is 'sdm', the name of a map"):
        pending_cases(cases(), report, layout(tmp_path / "out", "sdm"), skip_existing=False, maps=["sdm"])


def test_an_output_folder_that_cannot_be_written_to(tmp_path: Path, report: ArchiveReport) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"output_dir .*file/out cannot be written to: Not a directory"):
        pending_cases(cases(), report, layout(tmp_path / "file" / "out"), skip_existing=False)


def test_a_scan_that_cannot_be_loaded_is_an_item_with_a_failure(tmp_path: Path) -> None:
    def transform(data: dict[str, str]) -> dict[str, Any]:
        if "bad" in data["image"]:
            raise RuntimeError("applying the transform failed") from ValueError("the cause\nand details")
        return {**data, "loaded": True}

    scans = [write_scan(tmp_path / name) for name in ("good.nii.gz", "bad.nii.gz")] + [tmp_path / "gone.nii.gz"]
    dataset = ArchiveDataset(cases(*scans), transform, spatial_dims=3, in_channels=1)
    good, bad, gone = (dataset[index] for index in range(3))
    assert good["loaded"] and "failure" not in good and good["loading_seconds"] > 0
    assert bad["failure"] == f"{scans[1]} cannot be segmented: the cause"
    assert gone["failure"].startswith(f"{scans[2]} does not exist")
    assert [item["case"] for item in (good, bad, gone)] == [str(scan) for scan in scans]


class ZerosOnly(torch.nn.Module):
    """Predicts the class 1 everywhere in an image of zeros, and raises for other images."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if image.any():
            raise RuntimeError("CUDA out of memory\nTried to allocate 20 GB")
        return torch.ones_like(image)


def evaluate(report: ArchiveReport, items: list[dict[str, Any]], postprocessing: Any) -> None:
    ArchiveEvaluator(
        report=report,
        device=torch.device("cpu"),
        val_data_loader=DataLoader(items, batch_size=1),
        network=ZerosOnly(),
        postprocessing=postprocessing,
    ).run()


def image(value: float) -> MetaTensor:
    return MetaTensor(torch.full((1, 4, 4, 4), float(value)), affine=torch.diag(torch.tensor([1.0, 2.0, 5.0, 1.0])))


def test_an_inference_goes_on_after_a_scan_that_fails(report: ArchiveReport) -> None:
    def measure_entropy(output: dict[str, Any]) -> dict[str, Any]:
        return {**output, "pred_entropy": torch.full_like(output["pred"], 0.25)}

    items = [
        {"case": "a.nii.gz", "failure": "a.nii.gz is broken.", "loading_seconds": 1.0},
        {"case": "b.nii.gz", "image": image(1), "loading_seconds": 1.0},
        {"case": "c.nii.gz", "image": image(0), "loading_seconds": 1.0},
    ]
    evaluate(report, items, measure_entropy)
    broken, too_large, good = report.results
    assert (broken.status, broken.reason) == (FAILED, "a.nii.gz is broken.")
    assert too_large.reason == "b.nii.gz cannot be segmented: CUDA out of memory"
    assert good.status == SEGMENTED and good.seconds is not None and good.seconds > 1
    assert good.volumes_ml == pytest.approx({"organ": 64 * 10 / 1000})
    assert good.uncertainty == pytest.approx(0.25)


def test_the_reason_of_a_failed_writer_is_its_error_not_its_traceback(report: ArchiveReport) -> None:
    def save(output: dict[str, Any]) -> dict[str, Any]:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            text = f"Traceback (most recent call last):\n  File ...\nOSError: {error}\n"  # as MONAI's SaveImage does
            raise RuntimeError(text) from None

    evaluate(report, [{"case": "c.nii.gz", "image": image(0), "loading_seconds": 1.0}], save)
    assert report.results[0].reason == ("c.nii.gz cannot be segmented: OSError: [Errno 28] No space left on device")


def test_a_scan_that_is_unlike_the_training_scans_has_a_warning(tmp_path: Path) -> None:
    paths = [write_scan(tmp_path / f"{name}.nii.gz") for name in ("trained", "alike")]
    paths.append(write_scan(tmp_path / "thick.nii.gz", affine=np.diag([1.0, 1.0, 9.0, 1.0])))
    trained = describe_scans(labeled=cases(paths[0]), unlabeled=[], spatial_dims=3, in_channels=1)
    known, unknown = (ArchiveDataset(cases(*paths), dict, 3, 1, scans) for scans in (trained, None))
    warnings = [known[index]["warning"] for index in range(3)]
    assert warnings[:2] == ["", ""] and "voxels of 1, 1, 9 mm, there 1, 1, 1 mm" in warnings[2]
    assert [unknown[index]["warning"] for index in range(3)] == ["", "", ""]
