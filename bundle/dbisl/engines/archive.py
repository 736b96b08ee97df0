"""Inference over many scans. A scan that cannot be segmented is reported, and the run goes on with the others.

:func:`check_options` checks the options, :func:`pending_cases` plans the run, :class:`ArchiveDataset` loads the scans
and :class:`ArchiveEvaluator` segments them. Each scan's result goes into a :class:`dbisl.engines.ArchiveReport`.
"""

from __future__ import annotations

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
from dbisl.data.statistics import measure_scan, unlike_training
from dbisl.engines.report import FAILED, SEGMENTED, SKIPPED, ArchiveReport, ScanResult
from dbisl.transforms.writers import MAP_KEYS, ScanLayout
from dbisl.utils.errors import InputError, raise_if_any
from dbisl.utils.files import first_line


class ArchiveDataset(Dataset):
    """MONAI dataset that reports a scan which cannot be loaded instead of raising.

    An item has the keys of the transformed case, ``case`` (path of the scan), ``loading_seconds`` and ``warning`` (how
    the scan is unlike the training scans, or an empty string). A scan that cannot be loaded gives ``failure`` (a
    sentence that says why) instead of the transformed keys.

    Args:
        data: cases, each ``{"image": path, "case": path}``.
        transform: the transform of MONAI's ``Dataset``.
        spatial_dims: number of spatial axes, 2 or 3.
        in_channels: number of channels of an image.
        training_scans: description of the scans that the network was trained on, from
            :func:`dbisl.data.describe_scans`; None: not known, so that no scan is measured.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, str]],
        transform: Callable[..., Any],
        spatial_dims: int,
        in_channels: int,
        training_scans: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(data, transform)
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.training_scans = training_scans

    def __getitem__(self, index: Any) -> Any:
        case = self.data[index]
        started = time.perf_counter()
        item: dict[str, Any] = {"case": case["case"], "warning": ""}
        try:
            check_image(case[Keys.IMAGE], self.spatial_dims, self.in_channels)
            if self.training_scans:
                scan = measure_scan(case[Keys.IMAGE], self.spatial_dims, self.in_channels)
                item["warning"] = unlike_training(scan, self.training_scans)
            item |= super().__getitem__(index)
        except Exception as error:  # readers and transforms raise many types on a broken file
            item["failure"] = _failure(case["case"], error)
        item["loading_seconds"] = time.perf_counter() - started
        return item


class ArchiveEvaluator(SupervisedEvaluator):
    """MONAI ``SupervisedEvaluator`` for :class:`ArchiveDataset` that goes on when a scan fails.

    The data loader must have batches of one scan. After ``postprocessing``, the output of a scan must have ``pred``,
    the class map on the scan's grid (``1 x *spatial``), and ``pred_entropy`` (``1 x *spatial``), which
    :class:`dbisl.transforms.Entropyd` and :class:`dbisl.transforms.InvertArgmaxd` add.

    Args:
        report: where the result of each scan goes.
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
        except Exception as error:  # too large for the memory, a full disk, a failing transform
            result = ScanResult(case, FAILED, _failure(case, error))
        engine.state.output = []  # frees the memory for the next scan
        result.seconds = seconds + time.perf_counter() - started
        result.warning = batchdata.get("warning", [""])[0]
        self.report.add(result)
        return engine.state.output

    def _measure(self, case: str, output: Mapping[str, torch.Tensor]) -> ScanResult:
        """Return the volumes and the uncertainty of a segmented scan."""
        classes = output[Keys.PRED]
        voxel_ml = float(torch.det(classes.affine[:3, :3]).abs()) / 1000 if isinstance(classes, MetaTensor) else 0.0
        names = self.report.structures
        counts = torch.bincount(classes.flatten().int(), minlength=len(names) + 1)
        volumes = {name: float(count) * voxel_ml for name, count in zip(names, counts[1:], strict=True)}
        foreground = int(counts[1:].sum())
        uncertainty = float(output["pred_entropy"].sum(dtype=torch.float64)) / foreground if foreground else None
        return ScanResult(case, SEGMENTED, volumes_ml=volumes, uncertainty=uncertainty)


def pending_cases(
    cases: Sequence[dict[str, str]],
    report: ArchiveReport,
    layout: ScanLayout,
    skip_existing: bool,
    maps: Sequence[str] = (),
) -> list[dict[str, str]]:
    """Return the cases that are still to be segmented, and add the skipped ones to the report.

    A file that this program wrote, or that has the name of another scan's segmentation or map, is not a scan and is
    left out.

    Args:
        cases: the cases from :func:`dbisl.data.find_images`.
        report: the report of this run. It reads the rows of earlier runs, and learns which files each scan will have.
        layout: where the segmentations go.
        skip_existing: whether to skip a scan if an earlier run wrote its segmentation and its ``maps``, and the files
            still exist. False: segment all scans and overwrite what earlier runs wrote for them.
        maps: the maps to write beside each segmentation, by their names in :class:`dbisl.transforms.SaveMapsd`.

    Returns:
        The cases to segment, each ``{"image": path, "case": path}``.

    Raises:
        InputError: when ``output_dir`` cannot be written to, a scan would be overwritten, two images would go to the
            same file, or a file exists that the report does not list for its scan.
    """
    _require_writable(layout.output_dir)
    report.read()
    scans = [case["case"] for case in cases]
    postfixes = (layout.postfix, *MAP_KEYS)
    outputs = {os.path.realpath(layout.path(scan, postfix)) for scan in scans for postfix in postfixes} | report.files()
    overwritten = [scan for scan in scans if os.path.realpath(layout.path(scan)) == os.path.realpath(scan)]
    if overwritten:
        raise InputError(
            f"{overwritten[0]} would be overwritten by its segmentation: expected another output_dir or postfix."
        )
    if layout.postfix in maps:
        raise InputError(f"output_postfix is {layout.postfix!r}, the name of a map: expected another one.")

    planned: dict[Path, str] = {}
    pending = []
    for scan in scans:
        if os.path.realpath(scan) in outputs:
            continue
        paths = [layout.path(scan, postfix) for postfix in (layout.postfix, *maps)]
        earlier = report.earlier(scan)
        report.outputs[scan] = [str(path.relative_to(layout.output_dir)) for path in paths]
        for path, name in zip(paths, report.outputs[scan], strict=True):
            if path in planned:
                raise InputError(
                    f"{planned[path]} and {scan} would both be written to {path}: expected different names, or a "
                    "separate run with its own output_dir for each."
                )
            planned[path] = scan
            if path.exists() and (earlier is None or name not in earlier.files):
                raise InputError(
                    f"{path} exists, and {report.path} does not list it as a file of {scan}: expected another "
                    "output_dir or output_postfix, or that you remove the file."
                )
        done = earlier is not None and earlier.status in (SEGMENTED, SKIPPED) and all(path.is_file() for path in paths)
        if skip_existing and earlier is not None and done:
            report.add(replace(earlier, case=scan, status=SKIPPED))
        else:
            pending.append({"image": scan, "case": scan})
    return pending


def check_options(
    *,
    num_classes: int,
    patch_size: Sequence[int],
    patch_divisor: Sequence[int],
    spacing: Sequence[float] | None,
    overlap: float | Sequence[float],
    keep_largest: Sequence[int],
    fill_holes: Sequence[int],
    flips: Sequence[int],
) -> None:
    """Check the options of an inference before it reads any scan.

    Args:
        num_classes: number of classes, with the background.
        patch_size: size of a window along each axis, in voxels.
        patch_divisor: on each axis, the number that must divide a window's size, so that the network can downsample it.
        spacing: size of a voxel for the network along each axis, in millimetres; None for the scan's own.
        overlap: fraction of a window that its neighbour overlaps, for all axes or per axis.
        keep_largest: classes to reduce to their largest connected component.
        fill_holes: classes whose holes to fill.
        flips: spatial axes along which windows are also mirrored, to average the predictions.

    Raises:
        InputError: one sentence per wrong option, one per line.
    """
    raise_if_any(option_problems(patch_size, patch_divisor, spacing))
    overlaps = (
        ensure_tuple_rep(overlap, len(patch_size)) if isinstance(overlap, (int, float)) else ensure_tuple(overlap)
    )
    inside = all(isinstance(part, (int, float)) and 0 <= part < 1 for part in overlaps)
    problems = []
    if len(overlaps) != len(patch_size) or not inside:
        problems.append(f"overlap is {overlap!r}: expected at least 0 and less than 1, one number or one per axis.")
    for name, chosen, allowed, items in (
        ("keep_largest", keep_largest, range(1, num_classes), "classes"),
        ("fill_holes", fill_holes, range(1, num_classes), "classes"),
        ("flips", flips, range(len(patch_size)), "axes"),
    ):
        if not isinstance(chosen, (list, tuple)) or any(number not in allowed for number in chosen):
            problems.append(f"{name} is {chosen!r}: expected a list of {items} from {list(allowed)}.")
    raise_if_any(problems)


def _require_writable(folder: Path) -> None:
    """Create the output folder if it is missing, and check that files can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"output_dir {folder} cannot be written to: {error.strerror}.") from None


def _failure(case: str, error: BaseException) -> str:
    """Return one sentence that names the scan and the first cause of an error."""
    while error.__cause__ is not None:
        error = error.__cause__
    message = str(error).strip()
    # MONAI's SaveImage raises an error whose message is the traceback of its writer's error. The last line says why.
    reason = message.splitlines()[-1].strip()[:300] if "Traceback" in message else first_line(error, 300)
    return reason if reason.startswith(case) else f"{case} cannot be segmented: {reason}"
