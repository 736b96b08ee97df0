"""Inference over an archive: a scan that cannot be segmented is reported, and the others go on."""

from __future__ import annotations

import csv
import logging
import os
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from monai.data import Dataset, FolderLayoutBase, MetaTensor, NibabelWriter
from monai.engines import SupervisedEvaluator
from monai.transforms import MapTransform, SaveImage
from monai.utils.enums import CommonKeys as Keys

from dbisl.cases import EXTENSIONS, MAX_REPORTED, InputError, check_image

logger = logging.getLogger(__name__)

SEGMENTED, FAILED, SKIPPED = "segmented", "failed", "skipped"


@dataclass
class ScanResult:
    """One row of ``report.csv``.

    Attributes:
        case: path of the scan.
        status: ``segmented``, ``failed`` or ``skipped`` (its segmentation was there).
        reason: why it failed, in one sentence.
        seconds: from opening the scan to its segmentation on disk.
        volumes_ml: millilitres of each class but the background, by name.
        uncertainty: entropy (over ``log K``) summed over all voxels, over the number of foreground voxels: about the
            part of the structures that could be wrong. None where nothing was found.
    """

    case: str
    status: str
    reason: str = ""
    seconds: float = 0.0
    volumes_ml: dict[str, float] = field(default_factory=dict)
    uncertainty: float | None = None


class ArchiveReport:
    """Collects a result a scan and writes them to ``report.csv`` after each, whole or not at all.

    Args:
        output_dir: of the CSV file; made when it is missing.
        class_names: names of the classes, background first.
    """

    def __init__(self, output_dir: str, class_names: Sequence[str]) -> None:
        self.path = Path(output_dir) / "report.csv"
        self.class_names = list(class_names)
        self.results: list[ScanResult] = []

    def read(self) -> dict[str, ScanResult]:
        """What an earlier run measured of the scans that it segmented, now skipped, by case."""
        if not self.path.is_file():
            return {}
        names = self.class_names[1:]
        with self.path.open(newline="") as file:
            return {
                row["case"]: ScanResult(
                    row["case"],
                    SKIPPED,
                    seconds=float(row["seconds"] or 0),
                    volumes_ml={name: float(row[f"{name} (ml)"]) for name in names if row.get(f"{name} (ml)")},
                    uncertainty=float(row["uncertainty"]) if row["uncertainty"] else None,
                )
                for row in csv.DictReader(file)
                if row["status"] in (SEGMENTED, SKIPPED)
            }

    def add(self, result: ScanResult) -> None:
        self.results.append(result)
        if result.status == FAILED:
            logger.warning(result.reason)
        self.write()

    def write(self) -> None:
        """Write all results, whole or not at all."""
        columns = ["case", "status", "seconds", *(f"{name} (ml)" for name in self.class_names[1:])]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        with temporary.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*columns, "uncertainty", "reason"])
            for one in self.results:
                volumes = [
                    f"{one.volumes_ml[name]:.3f}" if name in one.volumes_ml else "" for name in self.class_names[1:]
                ]
                uncertainty = "" if one.uncertainty is None else f"{one.uncertainty:.4f}"
                seconds = f"{one.seconds:.1f}" if one.seconds else ""
                writer.writerow([one.case, one.status, seconds, *volumes, uncertainty, one.reason])
        os.replace(temporary, self.path)

    def finish(self) -> None:
        """Say how it went.

        Raises:
            InputError: when a scan failed, so that the program's exit code says so.
        """
        self.write()
        counts = {status: sum(one.status == status for one in self.results) for status in (SEGMENTED, SKIPPED, FAILED)}
        summary = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
        logger.info("%d scans: %s; see %s", len(self.results), summary, self.path)
        failed = [one for one in self.results if one.status == FAILED]
        if failed:
            more = [f"... and {len(failed) - MAX_REPORTED} more."] if len(failed) > MAX_REPORTED else []
            reasons = [one.reason for one in failed[:MAX_REPORTED]]
            raise InputError("\n".join([f"{len(failed)} of {len(self.results)} scans failed:", *reasons, *more]))


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
        names = self.report.class_names
        counts = torch.bincount(classes.flatten().int(), minlength=len(names))
        volumes = {name: float(count) * voxel_ml for name, count in zip(names[1:], counts[1:], strict=True)}
        found = int(counts[1:].sum())
        uncertainty = float(output["pred_entropy"].sum(dtype=torch.float64)) / found if found else None
        return ScanResult(case, SEGMENTED, volumes_ml=volumes, uncertainty=uncertainty)


class WholeNibabelWriter(NibabelWriter):
    """MONAI's writer of NIfTI files, under a temporary name first: a file is there whole or not at all."""

    def write(self, filename: Any, verbose: bool = False, **options: Any) -> None:
        path = Path(filename)
        temporary = path.with_name(f".{os.getpid()}.{path.name}")  # ends as the name does: that decides the format
        try:
            super().write(temporary, verbose, **options)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


class ScanLayout(FolderLayoutBase):
    """Where the images made of a scan go: ``output_dir/NAME_POSTFIX.nii.gz``.

    MONAI's ``FolderLayout`` takes whatever follows the last dot for an extension; the name of a DICOM series may be a
    UID, which is full of dots.

    Args:
        output_dir: made when a file is to go there.
        postfix: what the name ends in; "" for the scan's own name.
        separate_folder: whether each scan has a folder of its name.
    """

    def __init__(self, output_dir: str, postfix: str, separate_folder: bool = False) -> None:
        self.output_dir = Path(output_dir)
        self.postfix = postfix
        self.separate_folder = separate_folder

    def filename(self, subject: Any = "subject", idx: Any = None, **kwargs: Any) -> str:
        """Path for the scan ``subject`` (its path); its folder is made."""
        name = _scan_name(str(subject))
        folder = self.output_dir / name if self.separate_folder else self.output_dir
        folder.mkdir(parents=True, exist_ok=True)
        return str(folder / f"{name}{f'_{self.postfix}' if self.postfix else ''}{EXTENSIONS[0]}")


class SaveMapsd(MapTransform):
    """Writes maps of a segmented scan beside its segmentation, float32, each ``NAME_MAP.nii.gz``.

    Args:
        maps: of ``probability`` (``pred``), ``sdm`` (``pred_sdm``; not there when the network has one task),
            ``entropy`` (``pred_entropy``) and ``disagreement`` (``pred_uncertainty``), the keys that
            :class:`dbisl.transforms.FuseTasksd` and :class:`dbisl.transforms.Entropyd` fill.
        output_dir: as of :class:`ScanLayout`.
        separate_folder: as of :class:`ScanLayout`.

    Raises:
        InputError: for a map of another name.
    """

    KEYS: ClassVar[dict[str, str]] = {
        "probability": "pred",
        "sdm": "pred_sdm",
        "entropy": "pred_entropy",
        "disagreement": "pred_uncertainty",
    }

    def __init__(self, maps: Sequence[str], output_dir: str, separate_folder: bool = False) -> None:
        unknown = sorted(set(maps) - set(self.KEYS))
        if unknown:
            raise InputError(f"maps has {unknown}: expected some of {list(self.KEYS)}.")
        super().__init__([self.KEYS[name] for name in maps], allow_missing_keys=True)
        self.savers = {
            self.KEYS[name]: SaveImage(
                output_dtype=np.float32,
                resample=False,
                folder_layout=ScanLayout(output_dir, name, separate_folder),
                output_ext=EXTENSIONS[0],
                writer=WholeNibabelWriter,
                print_log=False,
            )
            for name in maps
        }

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        for key in self.key_iterator(dict(data)):
            self.savers[key](data[key])
        return dict(data)


def unfinished(
    cases: Sequence[dict[str, str]], report: ArchiveReport, layout: ScanLayout, skip_existing: bool
) -> list[dict[str, str]]:
    """The scans whose segmentation is still to be made; the others go into the report as they were measured.

    A file that is the segmentation of another scan in the list is no scan.

    Args:
        cases: from :func:`dbisl.cases.find_images`.
        report: of this run.
        layout: of the output files.
        skip_existing: False: all of them, over what an earlier run has written.

    Raises:
        InputError: when a scan would be overwritten, or two scans would have the same output file.
    """
    inputs = {os.path.realpath(case["case"]) for case in cases}
    outputs = {case["case"]: layout.filename(case["case"]) for case in cases}
    made = {os.path.realpath(path) for path in outputs.values()} & inputs
    scans: dict[str, str] = {}
    left = []
    measured = report.read() if skip_existing else {}
    for case, path in outputs.items():
        if os.path.realpath(path) == os.path.realpath(case):
            raise InputError(
                f"{case} would be overwritten by its segmentation: expected another output_dir or postfix."
            )
        if os.path.realpath(case) in made:
            continue
        if path in scans:
            raise InputError(
                f"{scans[path]} and {case} would both be written to {path}: expected different names, or one run each "
                "with an output_dir of its own."
            )
        scans[path] = case
        if skip_existing and os.path.isfile(path):
            report.results.append(measured.get(case, ScanResult(case, SKIPPED)))
        else:
            left.append({"image": case, "case": case})
    return left


def _scan_name(case: str) -> str:
    """Name of a scan without its folder and extension."""
    name = Path(case).name
    for extension in EXTENSIONS:
        name = name.removesuffix(extension)
    return name


def _sentence(case: str, error: BaseException) -> str:
    """One line that names the scan and the first cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # MONAI's SaveImage hands on what its writer raised as the text of a traceback, whose last line says it.
    text = (lines[-1 if "Traceback" in str(error) else 0] if lines else type(error).__name__)[:300]
    return text if text.startswith(case) else f"{case} cannot be segmented: {text}"
