"""Inference over an archive: a scan that cannot be segmented is reported, and the others go on."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from monai.data import Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.utils import ensure_tuple, ensure_tuple_rep
from monai.utils.enums import CommonKeys as Keys

from dbisl.data.checks import option_problems
from dbisl.data.scans import check_image
from dbisl.engines.report import FAILED, SEGMENTED, SKIPPED, ArchiveReport, ScanResult
from dbisl.transforms.writers import SaveMapsd, ScanLayout
from dbisl.utils.errors import InputError

logger = logging.getLogger(__name__)


class ArchiveDataset(Dataset):
    """A dataset whose item is ``{"failure": sentence}`` where a scan cannot be read.

    Args:
        data: cases, ``{"image": path, "case": path}``.
        transform: as of MONAI's ``Dataset``.
        spatial_dims: 2 or 3.
        in_channels: channels of an image.
    """

    def __init__(
        self, data: Sequence[Mapping[str, str]], transform: Callable[..., Any], spatial_dims: int, in_channels: int
    ) -> None:
        super().__init__(data, transform)
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels

    def __getitem__(self, index: Any) -> Any:
        case = self.data[index]
        started = time.perf_counter()
        item: dict[str, Any] = {"case": case["case"]}
        try:
            check_image(case[Keys.IMAGE], self.spatial_dims, self.in_channels)
            item |= super().__getitem__(index)
        except Exception as error:  # whatever a reader or a transform makes of a broken file
            item["failure"] = _sentence(case["case"], error)
        item["loading_seconds"] = time.perf_counter() - started
        return item


class ArchiveEvaluator(SupervisedEvaluator):
    """MONAI's ``SupervisedEvaluator`` over :class:`ArchiveDataset`, one scan at a time, which outlives a failure.

    Args:
        report: what each scan gave goes there. The transformed output has ``pred``, the class map on the scan's grid,
            and ``pred_entropy``, as :class:`dbisl.transforms.Entropyd` adds it.
        kwargs: the arguments of ``SupervisedEvaluator``.
    """

    def __init__(self, *, report: ArchiveReport, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.report = report

    def _iteration(self, engine: Any, batchdata: dict[str, Any]) -> Any:
        case, seconds = batchdata["case"][0], float(batchdata["loading_seconds"][0])
        started = time.perf_counter()
        try:
            if "failure" in batchdata:
                self.report.add(ScanResult(case, FAILED, batchdata["failure"][0], seconds))
                engine.state.output = []
                return engine.state.output
            self.report.begin(case)
            super()._iteration(engine, batchdata)
            result = self._measure(case, engine.state.output[0])
        except Exception as error:  # a scan too large for the memory, a full disk, a transform that gives up
            result = ScanResult(case, FAILED, _sentence(case, error))
        engine.state.output = []  # the next scan needs the memory
        result.seconds = seconds + time.perf_counter() - started
        self.report.add(result)
        return engine.state.output

    def _measure(self, case: str, output: Mapping[str, torch.Tensor]) -> ScanResult:
        classes = output[Keys.PRED]
        voxel_ml = float(torch.det(classes.affine[:3, :3]).abs()) / 1000 if isinstance(classes, MetaTensor) else 0.0
        names = self.report.structures
        counts = torch.bincount(classes.flatten().int(), minlength=len(names) + 1)
        volumes = {name: float(count) * voxel_ml for name, count in zip(names, counts[1:], strict=True)}
        found = int(counts[1:].sum())
        uncertainty = float(output["pred_entropy"].sum(dtype=torch.float64)) / found if found else None
        return ScanResult(case, SEGMENTED, volumes_ml=volumes, uncertainty=uncertainty)


def pending_cases(
    cases: Sequence[dict[str, str]],
    report: ArchiveReport,
    layout: ScanLayout,
    skip_existing: bool,
    maps: Sequence[str] = (),
) -> list[dict[str, str]]:
    """The scans that are still to be segmented; the others go into the report as they were measured.

    A file that was made of another scan in the list is no scan.

    Args:
        cases: from :func:`dbisl.data.find_images`.
        report: of this run.
        layout: of the segmentations.
        skip_existing: whether a scan is left out that an earlier run has segmented, where the segmentation and ``maps``
            are still there. False: all scans, over what earlier runs wrote of them.
        maps: that are to lie beside each segmentation, by the names that :class:`SaveMapsd` knows.

    Raises:
        InputError: when ``output_dir`` cannot be written to, a scan would be overwritten, two images would have the
            same file, or a file is there that by the report was not made of this scan.
    """
    _require_writable(layout.output_dir)
    report.read()
    scans = [case["case"] for case in cases]
    postfixes = (layout.postfix, *SaveMapsd.KEYS)
    made = {os.path.realpath(layout.path(scan, name)) for scan in scans for name in postfixes} | report.files()
    overwritten = [scan for scan in scans if os.path.realpath(layout.path(scan)) == os.path.realpath(scan)]
    if overwritten:
        raise InputError(
            f"{overwritten[0]} would be overwritten by its segmentation: expected another output_dir or postfix."
        )
    if layout.postfix in maps:
        raise InputError(f"output_postfix is {layout.postfix!r}, the name of a map: expected another one.")

    planned: dict[Path, str] = {}
    left = []
    for scan in scans:
        if os.path.realpath(scan) in made:
            continue
        paths = [layout.path(scan, name) for name in (layout.postfix, *maps)]
        earlier = report.earlier(scan)
        report.outputs[scan] = [str(path.relative_to(layout.output_dir)) for path in paths]
        for path, name in zip(paths, report.outputs[scan], strict=True):
            if path in planned:
                raise InputError(
                    f"{planned[path]} and {scan} would both be written to {path}: expected different names, or one run "
                    "each with an output_dir of its own."
                )
            planned[path] = scan
            if path.exists() and (earlier is None or name not in earlier.files):
                raise InputError(
                    f"{path} is there, and by {report.path} was not made of {scan}: expected another output_dir or "
                    "output_postfix, or that you remove it."
                )
        done = earlier is not None and earlier.status in (SEGMENTED, SKIPPED) and all(path.is_file() for path in paths)
        if skip_existing and earlier is not None and done:
            report.add(replace(earlier, case=scan, status=SKIPPED))
        else:
            left.append({"image": scan, "case": scan})
    return left


def check_options(
    *,
    num_classes: int,
    patch_size: Sequence[int],
    patch_divisor: int,
    spacing: Sequence[float] | None,
    overlap: float | Sequence[float],
    keep_largest: Sequence[int],
    fill_holes: Sequence[int],
    flips: Sequence[int],
) -> None:
    """Check what was chosen for an inference, before any scan is read.

    Raises:
        InputError: one sentence an option, one a line.
    """
    problems = option_problems(patch_size, patch_divisor, spacing)
    if problems:
        raise InputError("\n".join(problems))
    overlaps = (
        ensure_tuple_rep(overlap, len(patch_size)) if isinstance(overlap, (int, float)) else ensure_tuple(overlap)
    )
    inside = all(isinstance(part, (int, float)) and 0 <= part < 1 for part in overlaps)
    if len(overlaps) != len(patch_size) or not inside:
        problems.append(f"overlap is {overlap!r}: expected at least 0 and less than 1, one number or one an axis.")
    for name, chosen, allowed, of in (
        ("keep_largest", keep_largest, range(1, num_classes), "classes"),
        ("fill_holes", fill_holes, range(1, num_classes), "classes"),
        ("flips", flips, range(len(patch_size)), "axes"),
    ):
        if not isinstance(chosen, (list, tuple)) or any(number not in allowed for number in chosen):
            problems.append(f"{name} is {chosen!r}: expected a list of {of}, of {list(allowed)}.")
    if problems:
        raise InputError("\n".join(problems))


def _require_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"output_dir {folder} cannot be written to: {error.strerror}.") from None


def _sentence(case: str, error: BaseException) -> str:
    """One line that names the scan and the first cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # MONAI's SaveImage hands on what its writer raised as the text of a traceback, whose last line says it.
    text = (lines[-1 if "Traceback" in str(error) else 0] if lines else type(error).__name__)[:300]
    return text if text.startswith(case) else f"{case} cannot be segmented: {text}"
