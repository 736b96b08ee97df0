"""Evaluation: Dice, Jaccard, 95 % Hausdorff and average surface distance, one row a case, task and class.

The definitions are those that the semi-supervised literature reports, MedPy's ``dc``, ``jc``, ``hd95`` and ``asd``:
a surface voxel is a voxel of the mask with a neighbour across a face outside of it, and the image's border counts as
outside. MONAI's building blocks find the surfaces and the distances; its ``HausdorffDistanceMetric`` takes the larger
of two percentiles where MedPy takes one percentile of both directions together, so its numbers differ.
"""

from __future__ import annotations

import csv
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
from ignite.engine import Engine, Events
from monai.data.meta_tensor import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.utils.type_conversion import convert_to_numpy

from dbisl.metrics.surface import MaskMetrics, surface_metrics

METRICS = {
    "dice": "Dice",
    "jaccard": "Jaccard",
    "hd95_mm": "95HD (mm)",
    "asd_mm": "ASD (mm)",
    "hd95_voxel": "95HD (voxel)",
    "asd_voxel": "ASD (voxel)",
}
"""The metrics of a report, and their headings."""


OUTCOMES = ("found", "missed", "invented", "absent")
"""In both masks, in the reference only, in the prediction only, in neither."""


MEAN = "mean"
"""The summary's name for the average over the foreground classes."""


@dataclass(frozen=True, kw_only=True)
class CaseMetrics(MaskMetrics):
    """One row of ``cases.csv``: the metrics of one case, task and foreground class."""

    case: str
    task: str
    class_index: int
    class_name: str


@dataclass(frozen=True, kw_only=True)
class MetricSummary:
    """One row of ``summary.csv``: one metric over all cases, of one task and class.

    Attributes:
        task: the answer that was scored.
        class_index: foreground class; None for the average over the classes.
        class_name: its name; ``"mean"`` for the average over the classes.
        metric: one of ``METRICS``.
        n: cases that enter the numbers. An overlap counts a missed or invented structure as 0; a distance is not
            defined there and leaves it out, so read it beside ``missed`` and ``invented``.
        mean, std, median: over those ``n`` cases; ``std`` divides by ``n``; NaN for no case at all.
        found, missed, invented, absent: how often each outcome occurred; summed over the classes for their average.
    """

    task: str
    class_index: int | None
    class_name: str
    metric: str
    n: int
    mean: float
    std: float
    median: float
    found: int
    missed: int
    invented: int
    absent: int


def _case_means(rows: Iterable[CaseMetrics], metric: str) -> list[float]:
    """Each case's average of one metric over those of its classes where it is defined; NaN where it is for none."""
    values: dict[str, list[float]] = {}
    for row in rows:
        value = getattr(row, metric)
        values.setdefault(row.case, []).extend([] if math.isnan(value) else [value])
    return [sum(defined) / len(defined) if defined else math.nan for defined in values.values()]


def _summary(rows: Sequence[CaseMetrics], class_index: int | None, class_name: str) -> list[MetricSummary]:
    """Summarise the rows of one task, and of one class or (``class_index`` None) all of them: one entry a metric."""
    outcomes = Counter(row.outcome for row in rows)
    summaries = []
    for metric in METRICS:
        values = np.array([value for value in _case_means(rows, metric) if not math.isnan(value)])
        summary = MetricSummary(
            task=rows[0].task,
            class_index=class_index,
            class_name=class_name,
            metric=metric,
            n=len(values),
            mean=float(values.mean()) if len(values) else math.nan,
            std=float(values.std()) if len(values) else math.nan,
            median=float(np.median(values)) if len(values) else math.nan,
            **{outcome: outcomes[outcome] for outcome in OUTCOMES},
        )
        summaries.append(summary)
    return summaries


def summarise(rows: Sequence[CaseMetrics]) -> list[MetricSummary]:
    """Summarise every metric by task and class, and, last in each task, averaged over the foreground classes.

    That average is taken within each case first and then over the cases, as MONAI's reports do. Case names must be
    distinct.
    """
    summaries = []
    for task in dict.fromkeys(row.task for row in rows):
        of_task = [row for row in rows if row.task == task]
        for index, name in dict.fromkeys((row.class_index, row.class_name) for row in of_task):
            summaries += _summary([row for row in of_task if row.class_index == index], index, name)
        summaries += _summary(of_task, None, MEAN)
    return summaries


def format_table(summaries: Sequence[MetricSummary]) -> str:
    """A text table, one line a task and class: mean and standard deviation of each metric, and the outcomes' counts."""
    lines = [["task", "class", *METRICS.values(), *OUTCOMES]]
    for (task, _, name), group in groupby(summaries, key=lambda summary: astuple(summary)[:3]):
        entries = list(group)
        numbers = [f"{entry.mean:.4f} ± {entry.std:.4f}" if entry.n else "-" for entry in entries]
        lines.append([task, name, *numbers, *(str(getattr(entries[0], outcome)) for outcome in OUTCOMES)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _cell(value: Any) -> Any:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else value


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[CaseMetrics | MetricSummary]) -> None:
    """Write the rows whole or not at all: a reader never sees half a file. What is not defined is an empty cell."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows({name: _cell(value) for name, value in asdict(row).items()} for row in rows)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


CASE_COLUMNS = ("case", "task", "class_index", "class_name", *(field.name for field in fields(MaskMetrics)))


SUMMARY_COLUMNS = tuple(field.name for field in fields(MetricSummary))


def _case_names(sources: Sequence[str]) -> list[str]:
    """Names of the cases from their files' paths, each a different one.

    The file's name without ``.nii`` or ``.nii.gz``; with its folder's where several files share one name, as in data
    that has a folder a case; with a number where even this repeats.
    """
    stems = [Path(source).name.removesuffix(".gz").removesuffix(".nii") for source in sources]
    shared = Counter(stems)
    names = []
    seen: Counter[str] = Counter()
    for source, stem in zip(sources, stems, strict=True):
        name = stem if shared[stem] == 1 else f"{Path(source).parent.name}/{stem}".removeprefix("/")
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return names


def _gather(cases: list[list[CaseMetrics]]) -> list[list[CaseMetrics]]:
    """The cases of all processes, on each of them.

    A sampler that pads the shards to one length gives a case to two processes: it counts once.
    """
    gathered: list[list[CaseMetrics]] = []
    of_processes: Any = idist.all_gather(cases)
    for of_process in of_processes:
        known = {case[0].case for case in gathered}
        gathered += [case for case in of_process if case[0].case not in known]
    return gathered


class MetricsReport:
    """Ignite handler that scores every case of an evaluation and writes ``cases.csv`` and ``summary.csv``.

    Attach it to a MONAI ``SupervisedEvaluator`` that decollates. After each iteration it reads ``engine.state.output``,
    a list of one dictionary a case. After the epoch it gathers the cases of all processes, writes the files on the
    first one, logs a table, and stores ``engine.state.report``, a list of ``MetricSummary``, on each.

    Args:
        output_dir: folder of the two files; made when it is missing.
        class_names: names of the classes, background first.
        pred_keys: the tasks to report, and the key of each one's answer, a class map of ``1 x *spatial`` on the label's
            grid; for example ``{"fused": "pred", "segmentation": "pred_segmentation"}``.
        label_key: key of the reference, a class map of ``1 x *spatial`` as MetaTensor; its affine gives the millimetres
            and its file the name of the case.
        image_key: key of the image, whose file names the case when the label has none.

    Raises:
        ValueError: when there is no foreground class or no task; and while running, when a case lacks a key, a map is
            not one of these classes, shapes differ, or the label has no affine.
    """

    def __init__(
        self,
        *,
        output_dir: str | os.PathLike,
        class_names: Sequence[str],
        pred_keys: Mapping[str, str],
        label_key: str = "label",
        image_key: str = "image",
    ) -> None:
        if len(class_names) < 2:
            raise ValueError(f"class_names must name the background and a class at least, got {list(class_names)}.")
        if not pred_keys:
            raise ValueError("pred_keys must name one task at least, got none.")
        self.output_dir = Path(output_dir)
        self.class_names = list(class_names)
        self.pred_keys = dict(pred_keys)
        self.label_key = label_key
        self.image_key = image_key
        self._cases: list[list[CaseMetrics]] = []

    def attach(self, engine: Engine) -> None:
        """Register the handler's events with an evaluator."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._reset)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._score)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._report)

    def _reset(self, engine: Engine) -> None:
        self._cases = []

    def _score(self, engine: Engine) -> None:
        if not isinstance(engine.state.output, list):
            raise ValueError(
                f"the evaluator's output must be a list of one dictionary a case (decollate=True), "
                f"got {type(engine.state.output).__name__}."
            )
        for output in engine.state.output:
            self._cases.append(self._score_case(output))

    def _score_case(self, output: Mapping[str, Any]) -> list[CaseMetrics]:
        """The rows of one case: every task, and in it every foreground class."""
        source = self._source(output)
        reference = self._class_map(output, self.label_key)
        spacing = self._spacing(output[self.label_key], reference.ndim)
        rows = []
        for task, key in self.pred_keys.items():
            prediction = self._class_map(output, key)
            if prediction.shape != reference.shape:
                raise ValueError(
                    f"{key!r} and {self.label_key!r} of {source} must have one shape, "
                    f"got {prediction.shape} and {reference.shape}."
                )
            for index, name in enumerate(self.class_names[1:], start=1):
                metrics = surface_metrics(prediction == index, reference == index, spacing)
                rows.append(CaseMetrics(case=source, task=task, class_index=index, class_name=name, **asdict(metrics)))
        return rows

    def _source(self, output: Mapping[str, Any]) -> str:
        """The path of the case's file, or a number that no other process gives when there is none."""
        for key in (self.label_key, self.image_key):
            path = getattr(output.get(key), "meta", {}).get("filename_or_obj")
            if path:
                return str(path)
        return f"case_{len(self._cases) * idist.get_world_size() + idist.get_rank()}"

    def _class_map(self, output: Mapping[str, Any], key: str) -> np.ndarray:
        """One output as a map of the spatial shape in main memory, checked to hold nothing but the named classes."""
        if output.get(key) is None:
            raise ValueError(f"the evaluator's output must hold {key!r}, it has {sorted(output)}.")
        classes = convert_to_numpy(output[key])
        if classes.ndim < 2 or classes.shape[0] != 1:
            raise ValueError(f"{key!r} must be a class map of one channel, got the shape {classes.shape}.")
        # A label outside the named classes would otherwise vanish from the report.
        if not np.isin(classes, np.arange(len(self.class_names))).all():
            raise ValueError(
                f"{key!r} must hold whole numbers from 0 to {len(self.class_names) - 1}, one for each of "
                f"class_names, got values from {classes.min()} to {classes.max()}."
            )
        return classes[0]

    def _spacing(self, label: Any, spatial_dims: int) -> list[float]:
        if not isinstance(label, MetaTensor):
            raise ValueError(
                f"{self.label_key!r} must be a MetaTensor, whose affine gives the millimetres, "
                f"got {type(label).__name__}."
            )
        return affine_to_spacing(label.affine, r=spatial_dims).tolist()

    def _report(self, engine: Engine) -> None:
        cases = _gather(self._cases)
        names = _case_names([case[0].case for case in cases])
        rows = [replace(row, case=name) for case, name in zip(cases, names, strict=True) for row in case]
        summaries = summarise(rows)
        state: Any = engine.state
        state.report = summaries
        if idist.get_rank() == 0:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            _write_csv(self.output_dir / "cases.csv", CASE_COLUMNS, rows)
            _write_csv(self.output_dir / "summary.csv", SUMMARY_COLUMNS, summaries)
            engine.logger.info(
                "%d cases, mean ± standard deviation, written to %s\n%s",
                len(cases),
                self.output_dir,
                format_table(summaries),
            )
