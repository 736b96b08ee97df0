"""The report of an evaluation: ``cases.csv``, ``summary.csv`` and a table in the log.

``cases.csv`` has one row per case, task and foreground class; ``summary.csv`` has one row per task, class and metric.
:mod:`dbisl.metrics.surface` defines the metrics.
"""

from __future__ import annotations

import csv
import logging
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

from dbisl.metrics.surface import OUTCOMES, MaskMetrics, surface_metrics
from dbisl.utils.files import atomic_path, case_name

logger = logging.getLogger(__name__)

METRICS = {
    "dice": "Dice",
    "jaccard": "Jaccard",
    "hd95_mm": "95HD (mm)",
    "assd_mm": "ASSD (mm)",
    "hd95_voxel": "95HD (voxel)",
    "assd_voxel": "ASSD (voxel)",
}
"""The metrics of a report and their headings."""

MEAN = "mean"
"""The ``class_name`` of the average over the foreground classes."""


@dataclass(frozen=True, kw_only=True)
class CaseMetrics(MaskMetrics):
    """One row of ``cases.csv``: the metrics of one case, task and foreground class.

    Attributes:
        case: name of the case.
        task: the prediction that was scored, a key of ``pred_keys``.
        class_index: foreground class, from 1.
        class_name: name of the class.
    """

    case: str
    task: str
    class_index: int
    class_name: str


@dataclass(frozen=True, kw_only=True)
class MetricSummary:
    """One row of ``summary.csv``: one metric of one task and class over all cases.

    Attributes:
        task: the prediction that was scored, a key of ``pred_keys``.
        class_index: foreground class, from 1; None for the average over the classes.
        class_name: name of the class; ``"mean"`` for the average over the classes.
        metric: one of ``METRICS``.
        n: number of cases in the statistics. Overlaps count a false negative or false positive as 0. Distances leave
            out cases in which one mask is empty: read them together with ``false_negative`` and ``false_positive``.
        mean, std, median: statistics over those ``n`` cases; ``std`` divides by ``n``; NaN if ``n`` is 0.
        found, false_negative, false_positive, absent: how often each outcome occurred; for the average over the classes
            their sum over the classes.
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
    false_negative: int
    false_positive: int
    absent: int


CASE_COLUMNS = ("case", "task", "class_index", "class_name", *(field.name for field in fields(MaskMetrics)))
SUMMARY_COLUMNS = tuple(field.name for field in fields(MetricSummary))


class MetricsReport:
    """Ignite handler that scores every case of an evaluation and writes ``cases.csv`` and ``summary.csv``.

    Attach it to a MONAI ``SupervisedEvaluator`` that decollates. After each iteration it reads ``engine.state.output``,
    a list with one dictionary per case. After the epoch it gathers the cases of all processes and sets
    ``engine.state.report``, a list of :class:`MetricSummary`, in each process; the first process writes the two files
    and logs a table.

    Args:
        output_dir: folder of the two files; created if it is missing.
        class_names: names of the classes, background first.
        pred_keys: the key of each task's prediction in the evaluator's output, for example
            ``{"fused": "pred", "segmentation": "pred_segmentation"}``. A prediction is a class map, ``1 x *spatial``,
            on the label's grid.
        label_key: key of the reference, a class map, ``1 x *spatial``, as MetaTensor. Its affine gives the millimetres,
            its file gives the name of the case.
        image_key: key of the image. Its file names the case when the label has no file.

    Raises:
        ValueError: when there is no foreground class or no task; while running, when a case lacks a key, a map holds
            anything but these classes, shapes differ, or the label has no affine.
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
            raise ValueError(f"class_names must name the background and at least one class, got {list(class_names)}.")
        if not pred_keys:
            raise ValueError("pred_keys must name at least one task, got none.")
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
                "the evaluator's output must be a list with one dictionary per case (decollate=True), "
                f"got {type(engine.state.output).__name__}."
            )
        for output in engine.state.output:
            self._cases.append(self._score_case(output))

    def _score_case(self, output: Mapping[str, Any]) -> list[CaseMetrics]:
        """Return the rows of one case: one for each foreground class of each task."""
        source = self._source(output)
        reference = self._class_map(output, self.label_key)
        spacing = self._spacing(output[self.label_key], reference.ndim)
        rows = []
        for task, key in self.pred_keys.items():
            prediction = self._class_map(output, key)
            if prediction.shape != reference.shape:
                raise ValueError(
                    f"{key!r} and {self.label_key!r} of {source} must have the same shape, "
                    f"got {prediction.shape} and {reference.shape}."
                )
            for index, name in enumerate(self.class_names[1:], start=1):
                metrics = surface_metrics(prediction == index, reference == index, spacing)
                rows.append(CaseMetrics(case=source, task=task, class_index=index, class_name=name, **asdict(metrics)))
        return rows

    def _source(self, output: Mapping[str, Any]) -> str:
        """Return the path of the case's file; a number that is unique over the processes if there is no file."""
        for key in (self.label_key, self.image_key):
            path = getattr(output.get(key), "meta", {}).get("filename_or_obj")
            if path:
                return str(path)
        return f"case_{len(self._cases) * idist.get_world_size() + idist.get_rank()}"

    def _class_map(self, output: Mapping[str, Any], key: str) -> np.ndarray:
        """Return one output as an array of the spatial shape, after checking that it holds only the named classes."""
        if output.get(key) is None:
            raise ValueError(f"the evaluator's output must hold {key!r}, got {sorted(output)}.")
        classes = convert_to_numpy(output[key])
        if classes.ndim < 2 or classes.shape[0] != 1:
            raise ValueError(f"{key!r} must be a class map of one channel, got the shape {classes.shape}.")
        # Otherwise a class without a name would silently be missing from the report.
        if not np.isin(classes, np.arange(len(self.class_names))).all():
            raise ValueError(
                f"{key!r} must hold whole numbers from 0 to {len(self.class_names) - 1}, one for each of "
                f"class_names, got values from {classes.min()} to {classes.max()}."
            )
        return classes[0]

    def _spacing(self, label: Any, spatial_dims: int) -> list[float]:
        """Return the size of a voxel along each axis, in millimetres."""
        if not isinstance(label, MetaTensor):
            raise ValueError(
                f"{self.label_key!r} must be a MetaTensor, whose affine gives the millimetres, "
                f"got {type(label).__name__}."
            )
        return affine_to_spacing(label.affine, r=spatial_dims).tolist()

    def _report(self, engine: Engine) -> None:
        cases = _gather(self._cases)
        names = _distinct_names([case[0].case for case in cases])
        rows = [replace(row, case=name) for case, name in zip(cases, names, strict=True) for row in case]
        summaries = summarise(rows)
        state: Any = engine.state
        state.report = summaries
        if idist.get_rank() == 0:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            _write_csv(self.output_dir / "cases.csv", CASE_COLUMNS, rows)
            _write_csv(self.output_dir / "summary.csv", SUMMARY_COLUMNS, summaries)
            logger.info(
                "%d cases, mean ± standard deviation, written to %s\n%s",
                len(cases),
                self.output_dir,
                format_table(summaries),
            )


def summarise(rows: Sequence[CaseMetrics]) -> list[MetricSummary]:
    """Summarise every metric for each task and class, and last in each task for the average over the classes.

    The average over the foreground classes is taken within each case first and then over the cases, as in MONAI's
    reports.

    Args:
        rows: the rows of all cases. Case names must be distinct.

    Returns:
        One summary per task, class and metric.
    """
    summaries = []
    for task in dict.fromkeys(row.task for row in rows):
        task_rows = [row for row in rows if row.task == task]
        for index, name in dict.fromkeys((row.class_index, row.class_name) for row in task_rows):
            summaries += _summary([row for row in task_rows if row.class_index == index], index, name)
        summaries += _summary(task_rows, None, MEAN)
    return summaries


def format_table(summaries: Sequence[MetricSummary]) -> str:
    """Return a text table with one line per task and class: ``mean ± std`` of each metric and each outcome's count.

    Args:
        summaries: from :func:`summarise`.
    """
    lines = [["task", "class", *METRICS.values(), *(outcome.replace("_", " ") for outcome in OUTCOMES)]]
    for (task, _, name), group in groupby(summaries, key=lambda summary: astuple(summary)[:3]):
        entries = list(group)
        numbers = [f"{entry.mean:.4f} ± {entry.std:.4f}" if entry.n else "-" for entry in entries]
        lines.append([task, name, *numbers, *(str(getattr(entries[0], outcome)) for outcome in OUTCOMES)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _summary(rows: Sequence[CaseMetrics], class_index: int | None, class_name: str) -> list[MetricSummary]:
    """Summarise the rows of one task, of one class or (``class_index`` None) of all classes: one entry per metric."""
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


def _case_means(rows: Iterable[CaseMetrics], metric: str) -> list[float]:
    """Average one metric over the classes of each case, leaving out NaN; NaN for a case without any number."""
    values: dict[str, list[float]] = {}
    for row in rows:
        value = getattr(row, metric)
        values.setdefault(row.case, []).extend([] if math.isnan(value) else [value])
    return [sum(defined) / len(defined) if defined else math.nan for defined in values.values()]


def _gather(cases: list[list[CaseMetrics]]) -> list[list[CaseMetrics]]:
    """Return the cases of all processes, in each process.

    A sampler that pads its shards to the same length gives one case to two processes; such a case counts once.
    """
    gathered: list[list[CaseMetrics]] = []
    processes: Any = idist.all_gather(cases)
    for process_cases in processes:
        names = {case[0].case for case in gathered}
        gathered += [case for case in process_cases if case[0].case not in names]
    return gathered


def _distinct_names(sources: Sequence[str]) -> list[str]:
    """Return a distinct name for each case from the path of its file.

    A case has the name of its file. Where several files share a name, as in data with one folder per case, the folder's
    name comes before it; where this repeats too, a number follows.
    """
    own_names = [case_name(source) for source in sources]
    counts = Counter(own_names)
    names = []
    seen: Counter[str] = Counter()
    for source, own_name in zip(sources, own_names, strict=True):
        name = own_name if counts[own_name] == 1 else f"{Path(source).parent.name}/{own_name}".removeprefix("/")
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return names


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[CaseMetrics | MetricSummary]) -> None:
    """Write the rows of a report."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in asdict(row).items()} for row in rows)


def _cell(value: Any) -> Any:
    """Return what a CSV cell shows of a value: an empty cell for None and NaN."""
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else value
