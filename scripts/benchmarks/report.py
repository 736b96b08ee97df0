"""The report of a comparison: all cases in one file, a table with confidence intervals, and a figure."""

from __future__ import annotations

import csv
import json
import platform
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from dbisl.utils import atomic_path
from scripts.benchmarks.cells import Cell, Plan
from scripts.benchmarks.common import markdown_table, write_text

METRICS = {"dice": "Dice (%)", "hd95_mm": "95HD (mm)", "assd_mm": "ASSD (mm)"}
RESAMPLES = 10_000
"""Resamples of the bootstrap."""
EPOCH = re.compile(r"epoch \d+ of \d+: .*")
"""The line of an epoch in a training's log."""
FOREGROUND = re.compile(r"unlabeled foreground ([\d.]+)% of the labels'")
"""In such a line, the foreground that is predicted on the unlabeled scans."""
Row = dict[str, str]
"""A row of ``cases.csv``: one case, task and class."""


def write_report(plan: Plan, cells: Sequence[Cell], baselines: Sequence[str]) -> None:
    """Write ``results.csv``, ``table.md`` and ``label_efficiency.png`` into the plan's ``output_dir``; print the table.

    Args:
        plan: what the cells have in common.
        cells: the finished cells, at least one.
        baselines: methods with which each of the others is compared.
    """
    rows = {cell: read_cases(plan.evaluation(cell) / "cases.csv") for cell in cells}
    _write_results(rows, plan.output_dir / "results.csv")
    seconds = {cell: json.loads((plan.folder(cell) / "cell.json").read_text())["training_seconds"] for cell in cells}
    predictions = {cell: str(plan.config(cell)["prediction"]) for cell in cells}
    scored = {cell: [row for row in rows[cell] if row["task"] == predictions[cell]] for cell in cells}
    foreground = {cell: foreground_ratio(plan.folder(cell) / "training.log") for cell in cells}
    table = _table(scored, predictions, foreground, seconds, baselines)
    caption = _caption(plan, scored)
    write_text(plan.output_dir / "table.md", f"{caption}\n\n{table}\n")
    _plot(scored, plan.output_dir / "label_efficiency.png", caption.split(";")[0])
    print(f"\n{caption}\n\n{table}")


def _write_results(rows: Mapping[Cell, Sequence[Row]], path: Path) -> None:
    """Write the rows of all cells as one CSV file, each with its method, number of labels and seed."""
    columns = ["method", "labels", "seed", *next(iter(rows.values()))[0]]
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for cell, cell_rows in rows.items():
            common = {"method": cell.method, "labels": cell.labels, "seed": cell.seed}
            writer.writerows({**common, **row} for row in cell_rows)


def read_cases(path: Path) -> list[Row]:
    """Return the rows of an evaluation's ``cases.csv``."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def foreground_ratio(log: Path) -> float | None:
    """Return the predicted fraction of foreground on unlabeled scans over the fraction in the labels.

    It is that of the last epoch in the log. Near 0 both tasks have collapsed to background.

    Args:
        log: the log of a training.

    Returns:
        The ratio; None where the training saw no unlabeled scan.
    """
    lines = EPOCH.findall(log.read_text(errors="replace"))
    found = FOREGROUND.search(lines[-1]) if lines else None
    return float(found[1]) / 100 if found else None


def case_means(rows: Sequence[Row], metric: str) -> dict[str, float]:
    """Return the mean of a metric over the classes of each case.

    Undefined values do not count; a case without a defined value is left out.
    """
    values: dict[str, list[float]] = {}
    for row in rows:
        if row[metric]:
            values.setdefault(row["case"], []).append(float(row[metric]))
    return {case: statistics.fmean(case_values) for case, case_values in values.items()}


def paired_difference(
    ours: Mapping[int, Mapping[str, float]], theirs: Mapping[int, Mapping[str, float]]
) -> tuple[float, float, float] | None:
    """Return the mean difference of two methods and its 95% confidence interval.

    A case's difference is the mean over the common seeds. The interval is a percentile bootstrap over the cases, with
    a fixed seed.

    Args:
        ours: value by seed and case.
        theirs: the same for the other method.

    Returns:
        Mean, lower and upper end; None where the methods have no seed or no case in common.
    """
    seeds = sorted(set(ours) & set(theirs))
    cases = [case for case in next(iter(ours.values())) if all(case in of[s] for of in (ours, theirs) for s in seeds)]
    if not seeds or not cases:
        return None
    differences = np.array([[ours[seed][case] - theirs[seed][case] for seed in seeds] for case in cases]).mean(axis=1)
    chosen = np.random.default_rng(0).integers(0, len(cases), size=(RESAMPLES, len(cases)))
    low, high = np.percentile(differences[chosen].mean(axis=1), [2.5, 97.5])
    return float(differences.mean()), float(low), float(high)


def mean_and_deviation(values: Sequence[float]) -> str:
    """Return ``mean ± standard deviation``; the mean alone of one value, ``undefined`` without a value."""
    if not values:
        return "undefined"
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{deviation}"


def plot_dice(curves: Mapping[str, Mapping[float, Sequence[float]]], path: Path, title: str, log: bool = False) -> None:
    """Draw the Dice over the number of labeled scans as a PNG: mean and standard deviation over the seeds.

    Args:
        curves: by name and number of labeled scans, the Dice (%) of each seed.
        path: where to write the PNG.
        title: title of the figure.
        log: whether the numbers of labeled scans are on a logarithmic axis, each with a tick.
    """
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, curve in curves.items():
        means = [statistics.fmean(values) for values in curve.values()]
        spread = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in curve.values()]
        axes.errorbar(list(curve), means, spread, marker="o", capsize=3, label=name)
    if log:
        axes.set_xscale("log", base=2)
        ticks = sorted({labels for curve in curves.values() for labels in curve})
        axes.set_xticks(ticks, [str(labels) for labels in ticks])
    axes.set(xlabel="labeled scans", ylabel="Dice (%)", title=title)
    axes.legend()
    axes.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


def _groups(cells: Mapping[Cell, object]) -> dict[tuple[int, str], list[Cell]]:
    """Return the cells by number of labels and method, the fewest labels first."""
    groups: dict[tuple[int, str], list[Cell]] = {}
    for cell in sorted(cells, key=lambda cell: cell.labels):
        groups.setdefault((cell.labels, cell.method), []).append(cell)
    return groups


def _table(
    scored: Mapping[Cell, list[Row]],
    predictions: Mapping[Cell, str],
    foreground: Mapping[Cell, float | None],
    seconds: Mapping[Cell, float],
    baselines: Sequence[str],
) -> str:
    """Return the Markdown table, one row per number of labels and method."""
    groups = _groups(scored)
    baselines = [name for name in baselines if any(method == name for _, method in groups)]
    header = ["labels", "method", "prediction", "seeds", *METRICS.values(), "false negatives"]
    header += [f"Dice minus {name}'s [95% CI]" for name in baselines]
    header += ["foreground (%)", "training (min)"]
    rows = []
    for (labels, method), cells in groups.items():
        row = [str(labels), method, predictions[cells[0]], str(len(cells))]
        for metric in METRICS:
            scale = 100 if metric == "dice" else 1
            means = [case_means(scored[cell], metric) for cell in cells]
            row.append(mean_and_deviation([scale * statistics.fmean(of.values()) for of in means if of]))
        row.append(str(sum(entry["outcome"] == "false_negative" for cell in cells for entry in scored[cell])))
        for baseline in baselines:
            row.append("-" if method == baseline else _difference(scored, cells, groups.get((labels, baseline), [])))
        ratios = [100 * ratio for cell in cells if (ratio := foreground[cell]) is not None]
        row.append(f"{statistics.fmean(ratios):.0f}" if ratios else "-")
        row.append(f"{statistics.median(seconds[cell] for cell in cells) / 60:.1f}")
        rows.append(row)
    return markdown_table(header, rows)


def _difference(scored: Mapping[Cell, list[Row]], ours: Sequence[Cell], theirs: Sequence[Cell]) -> str:
    """Return the difference of two groups of cells in points of Dice, with its interval; ``-`` without a pair."""
    our_seeds, their_seeds = (
        {cell.seed: case_means(scored[cell], "dice") for cell in cells} for cells in (ours, theirs)
    )
    difference = paired_difference(our_seeds, their_seeds)
    if difference is None:
        return "-"
    mean, low, high = (100 * value for value in difference)
    common = len(set(our_seeds) & set(their_seeds))
    of_seeds = f" ({common} of the seeds)" if common < len(our_seeds) else ""
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]{of_seeds}"


def _caption(plan: Plan, scored: Mapping[Cell, list[Row]]) -> str:
    """Return what was compared and what the columns mean; the part before the first semicolon is a title."""
    scans = len({row["case"] for rows in scored.values() for row in rows})
    kind = "TEST" if plan.test_scans else "validation"
    overrides = ", ".join(f"{name} = {value}" for name, value in plan.overrides.items()) or "none"
    config = plan.config(next(iter(scored)))
    length = f"{config['epochs']} epochs of {config['iterations_per_epoch']} iterations"
    chosen = {"last": "the last checkpoint", "best": "the checkpoint that is best on the validation scans"}
    return (
        f"{plan.dataset_dir.name}, {scans} {kind} scans; {chosen[plan.checkpoint]} of each training of {length}, "
        "scored by the prediction of its method. Mean ± standard deviation over the seeds; the value of a seed is the "
        "mean over the cases. A false negative (a class that was not found) has a Dice of 0, and a distance only if it "
        "was predicted elsewhere. Differences are paired by seed and case, in points of Dice; their interval is a "
        "percentile bootstrap over the "
        f"cases ({RESAMPLES} resamples). Foreground: the fraction predicted on the unlabeled scans in the last epoch, "
        "over the fraction in the labels; near 0 a training has collapsed. "
        f"Config: {', '.join(path.name for path in plan.config_file) or 'train.json'}; "
        f"overrides: {overrides}. Training time: median over the seeds, {platform.machine()}, torch "
        f"{torch.__version__}."
    )


def _plot(scored: Mapping[Cell, list[Row]], path: Path, title: str) -> None:
    """Draw the Dice of each method over the number of labels."""
    curves: dict[str, dict[float, list[float]]] = {}
    for (labels, method), cells in _groups(scored).items():
        dice = [100 * statistics.fmean(case_means(scored[cell], "dice").values()) for cell in cells]
        curves.setdefault(method, {})[labels] = dice
    plot_dice(curves, path, title, log=True)
