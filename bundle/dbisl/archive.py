"""Inference over an archive: a scan that cannot be segmented is reported, and the others go on."""

from __future__ import annotations

import csv
import logging
import os
import tempfile
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from monai.data import Dataset, FolderLayoutBase, MetaTensor, NibabelWriter
from monai.engines import SupervisedEvaluator
from monai.transforms import MapTransform, SaveImage
from monai.utils import ensure_tuple, ensure_tuple_rep
from monai.utils.enums import CommonKeys as Keys

from dbisl.cases import EXTENSIONS, MAX_REPORTED, InputError, case_name, option_problems
from dbisl.scans import check_image

logger = logging.getLogger(__name__)

SEGMENTED, FAILED, SKIPPED, UNFINISHED = "segmented", "failed", "skipped", "unfinished"
COLUMNS = ("case", "status", "seconds", "uncertainty", "files", "reason")
ML = " (ml)"
"""What follows the name of a class in the column of its volumes, which come after the seconds."""
NUMBERS = ("seconds", "uncertainty", ML)
SEPARATOR = ";"


@dataclass
class ScanResult:
    """One row of ``report.csv``.

    Attributes:
        case: path of the scan.
        status: ``segmented``, ``failed``, ``skipped`` (what was asked for was there), or ``unfinished`` (at work; so it
            stays when the program is stopped).
        reason: why it failed, in one sentence.
        seconds: from opening the scan to its segmentation on disk; None where no run has measured it.
        volumes_ml: millilitres of each class but the background, by name.
        uncertainty: entropy (over ``log K``) summed over all voxels, over the number of foreground voxels: about the
            part of the structures that could be wrong. None where nothing was found.
        files: what was written for it, by names in ``output_dir``.
    """

    case: str
    status: str
    reason: str = ""
    seconds: float | None = None
    volumes_ml: dict[str, float] = field(default_factory=dict)
    uncertainty: float | None = None
    files: list[str] = field(default_factory=list)


class ArchiveReport:
    """The measures of the scans in an ``output_dir``: its ``report.csv``, written after each scan, whole or not at all.

    Rows of earlier runs stay, but for scans that this run has, and for failures of scans that are no more. The rows
    also say which files are this program's, so that nothing else is overwritten. One run at a time writes there.

    Args:
        output_dir: of the CSV file; made when it is missing.
        class_names: names of the classes, background first.
    """

    def __init__(self, output_dir: str, class_names: Sequence[str]) -> None:
        self.path = Path(output_dir) / "report.csv"
        self.structures = list(class_names)[1:]
        self.results: list[ScanResult] = []
        self.outputs: dict[str, list[str]] = {}
        self._rows: dict[str, ScanResult] = {}

    def read(self) -> None:
        """Read what earlier runs wrote.

        Raises:
            InputError: when ``report.csv`` is no report.
        """
        if not self.path.exists():
            return
        if not self.path.is_file():
            raise InputError(f"{self.path} is a folder: expected the report of an earlier run, or nothing.")
        with self.path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = csv.DictReader(file)
            columns = list(rows.fieldnames or ())
            if not set(COLUMNS).issubset(columns):
                raise InputError(f"{self.path} has the columns {columns}: expected {list(COLUMNS)} and others.")
            for row in rows:
                if row["status"] == FAILED and not os.path.exists(row["case"]):
                    continue
                try:
                    numbers = {name: float(row[name]) for name in columns if name.endswith(NUMBERS) and row[name]}
                except ValueError as error:
                    raise InputError(f"{self.path}, the row of {row['case']}: {error}; expected a number.") from None
                self._set(
                    ScanResult(
                        row["case"],
                        row["status"],
                        row["reason"],
                        numbers.get("seconds"),
                        {name.removesuffix(ML): volume for name, volume in numbers.items() if name.endswith(ML)},
                        numbers.get("uncertainty"),
                        row["files"].split(SEPARATOR) if row["files"] else [],
                    )
                )

    def earlier(self, case: str) -> ScanResult | None:
        """The row of a scan, by whatever path it was reached."""
        return self._rows.get(os.path.realpath(case))

    def files(self) -> set[str]:
        """Absolute paths of all files that were written by this program."""
        return {os.path.realpath(self.path.parent / name) for row in self._rows.values() for name in row.files}

    def begin(self, case: str) -> None:
        """Note that the files of a scan (``outputs``) are about to be written."""
        self._set(ScanResult(case, UNFINISHED, files=self._files(case)))
        self.write()

    def add(self, result: ScanResult) -> None:
        """Note what became of a scan, in the log and on disk."""
        result.files = [name for name in self._files(result.case) if (self.path.parent / name).is_file()]
        self._set(result)
        self.results.append(result)
        if result.status == FAILED:
            logger.warning(result.reason)
        elif result.status == SEGMENTED:
            logger.info("%s segmented in %.1f s", result.case, result.seconds)
        self.write()

    def write(self) -> None:
        """Write all rows, whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = self._rows.values()
        structures = dict.fromkeys([*self.structures, *(name for one in rows for name in one.volumes_ml)])
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            with temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
                volumes = [f"{name}{ML}" for name in structures]
                writer = csv.DictWriter(file, [*COLUMNS[:3], *volumes, *COLUMNS[3:]])
                writer.writeheader()
                for one in rows:
                    row = {"case": one.case, "status": one.status, "reason": one.reason}
                    row |= {f"{name}{ML}": f"{volume:.3f}" for name, volume in one.volumes_ml.items()}
                    row["seconds"] = "" if one.seconds is None else f"{one.seconds:.1f}"
                    row["uncertainty"] = "" if one.uncertainty is None else f"{one.uncertainty:.4f}"
                    row["files"] = SEPARATOR.join(one.files)
                    writer.writerow(row)
            os.replace(temporary, self.path)
        finally:
            temporary.unlink(missing_ok=True)

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

    def _files(self, case: str) -> list[str]:
        """What this run writes for a scan, and what earlier ones wrote."""
        row = self.earlier(case)
        return list(dict.fromkeys([*(row.files if row else ()), *self.outputs.get(case, ())]))

    def _set(self, row: ScanResult) -> None:
        self._rows[os.path.realpath(row.case)] = row


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


class WholeNibabelWriter(NibabelWriter):
    """MONAI's writer of NIfTI files, for files that lie over their scan in every viewer.

    A file is there whole or not at all: it is written under a temporary name first. Its axes are those of the scan,
    also where one has the size 1, and its unit is the millimetre.
    """

    @classmethod
    def convert_to_channel_last(
        cls,
        data: Any,
        channel_dim: int | Sequence[int] | None = 0,
        squeeze_end_dims: bool = True,
        spatial_ndim: int | None = 3,
        contiguous: bool = False,
    ) -> Any:
        """As MONAI's, but ``squeeze_end_dims`` drops a single channel alone, no spatial axis of size 1 before it."""
        single = squeeze_end_dims and channel_dim == 0 and data.shape[0] == 1
        axes = data.ndim - 1 if single else spatial_ndim
        data = super().convert_to_channel_last(data, channel_dim, False, axes, contiguous)
        return data[..., 0] if single else data

    def set_metadata(self, meta_dict: Mapping[str, Any] | None, resample: bool = True, **options: Any) -> None:
        """As MONAI's, but where nothing is to be resampled the resampler is left out: it takes no plane."""
        if resample:
            super().set_metadata(meta_dict, resample, **options)
        else:
            _, self.affine, _ = self.get_meta_info(meta_dict)

    @classmethod
    def create_backend_obj(cls, *args: Any, **kwargs: Any) -> Any:
        """As MONAI's, with the unit."""
        image = super().create_backend_obj(*args, **kwargs)
        image.header.set_xyzt_units("mm")
        return image

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

    ``NAME`` is that of the scan's file or folder; of one deeper in ``dataset_dir`` it has the names of the folders
    between, as in ``patient_study_series``. MONAI's ``FolderLayout`` would take whatever follows the last dot for an
    extension; the name of a DICOM series may be a UID, which is full of dots.

    Args:
        output_dir: made when a file is to go there.
        postfix: what the name ends in; "" for the scan's own name.
        separate_folder: whether each scan has a folder of its name.
        dataset_dir: what the scans were found in, as of :func:`dbisl.scans.find_images`.

    Raises:
        InputError: for an ``output_dir`` that is no path, or a ``postfix`` that is one.
    """

    def __init__(
        self,
        output_dir: str,
        postfix: str,
        separate_folder: bool = False,
        dataset_dir: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    ) -> None:
        if not isinstance(output_dir, (str, os.PathLike)):
            raise InputError(f"output_dir is {output_dir!r}: expected the path of a folder.")
        if os.sep in str(postfix or ""):
            raise InputError(f"output_postfix is {postfix!r}: expected what a file name ends in, without {os.sep!r}.")
        self.output_dir = Path(output_dir)
        self.postfix = postfix
        self.separate_folder = separate_folder
        listed = dataset_dir if isinstance(dataset_dir, (list, tuple)) else [dataset_dir]
        paths = [root for root in listed if isinstance(root, (str, os.PathLike))]
        self.roots = [os.path.abspath(Path(root).expanduser()) for root in paths]

    def path(self, subject: str, postfix: str | None = None) -> Path:
        """Path of what is made of the scan at the path ``subject``, by another postfix if one is given."""
        name = self._name(Path(os.path.abspath(subject)))
        postfix = self.postfix if postfix is None else postfix
        folder = self.output_dir / name if self.separate_folder else self.output_dir
        return folder / f"{name}{f'_{postfix}' if postfix else ''}{EXTENSIONS[0]}"

    def filename(self, subject: Any = "subject", idx: Any = None, **kwargs: Any) -> str:
        """:meth:`path` for MONAI's ``SaveImage``; its folder is made."""
        path = self.path(str(subject))
        path.parent.mkdir(parents=True, exist_ok=True)
        return str(path)

    def with_postfix(self, postfix: str) -> ScanLayout:
        """The layout of another image of the same scans."""
        return ScanLayout(str(self.output_dir), postfix, self.separate_folder, self.roots)

    def _name(self, scan: Path) -> str:
        for root in self.roots:
            between = scan.relative_to(root).parts[:-1] if scan.is_relative_to(root) else ()
            if between:
                return "_".join([*between, case_name(scan)])
        return case_name(scan)


class SaveMapsd(MapTransform):
    """Writes maps of a segmented scan beside its segmentation, float32, each ``NAME_MAP.nii.gz``.

    Args:
        maps: of ``probability`` (``pred``), ``entropy`` (``pred_entropy``), ``sdm`` (``pred_sdm``) and ``disagreement``
            (``pred_uncertainty``), the keys that :class:`dbisl.transforms.FuseTasksd` and
            :class:`dbisl.transforms.Entropyd` fill. A network that gives one answer has neither of the last two.
        layout: of the segmentation.
        two_answers: whether the network gives one answer a task.

    Raises:
        InputError: for a map of another name or that the network does not give, or for none.
    """

    KEYS: ClassVar[dict[str, str]] = {
        "probability": "pred",
        "sdm": "pred_sdm",
        "entropy": "pred_entropy",
        "disagreement": "pred_uncertainty",
    }

    OF_TWO_ANSWERS = ("sdm", "disagreement")

    def __init__(self, maps: Sequence[str], layout: ScanLayout, two_answers: bool = True) -> None:
        known = [name for name in self.KEYS if two_answers or name not in self.OF_TWO_ANSWERS]
        named = isinstance(maps, (list, tuple)) and len(maps) > 0
        if not named or not all(isinstance(name, str) and name in known for name in maps):
            whose = "" if two_answers else ", all that a network with one answer gives"
            raise InputError(f"maps is {maps!r}: expected a list of some of {known}{whose}.")
        super().__init__([self.KEYS[name] for name in maps])
        self.savers = {
            self.KEYS[name]: SaveImage(
                output_dtype=np.float32,
                resample=False,
                folder_layout=layout.with_postfix(name),
                output_ext=EXTENSIONS[0],
                writer=WholeNibabelWriter,
                print_log=False,
            )
            for name in maps
        }

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        for key, save in self.savers.items():
            save(data[key])
        return dict(data)


def unfinished(
    cases: Sequence[dict[str, str]],
    report: ArchiveReport,
    layout: ScanLayout,
    skip_existing: bool,
    maps: Sequence[str] = (),
) -> list[dict[str, str]]:
    """The scans that are still to be segmented; the others go into the report as they were measured.

    A file that was made of another scan in the list is no scan.

    Args:
        cases: from :func:`dbisl.scans.find_images`.
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
