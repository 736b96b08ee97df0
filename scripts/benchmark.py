"""Compare methods on your own scans: methods x label counts x seeds, each cell a real training and evaluation.

    python scripts/benchmark.py --dataset_dir DATA --output_dir comparison \\
        --methods "['supervised','dtc','dbisl']" --labels "[4,8,'all']" --seeds "[0,1,2]"

trains every cell that is not there yet, each in a folder of its own, and writes ``results.csv`` (a row a cell, case,
task and class), ``table.md`` and ``label_efficiency.png``. It can be stopped at any moment and started again: a
finished cell is not run again, another one goes on from its last checkpoint. The methods are the files of
``bundle/configs/methods``.
"""

from __future__ import annotations

import csv
import fcntl
import hashlib
import json
import os
import platform
import queue
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

import fire
import numpy as np
import torch
from matplotlib.figure import Figure
from monai.bundle import ConfigParser
from monai.utils import ensure_tuple

from dbisl.data import find_cases

BUNDLE = Path(__file__).resolve().parent.parent / "bundle"
ALL = "all"
CHECKPOINTS = {"last": "model_final.pt", "best": "model.pt"}
METRICS = {"dice": "Dice (%)", "hd95_mm": "95HD (mm)", "asd_mm": "ASD (mm)"}
RESAMPLES = 10_000
OF_CELLS = ("dataset_dir", "output_dir", "ckpt_dir", "ckpt_path", "num_labeled", "seed", "resume")
"""Keys of the config that each cell sets."""
FOREGROUND = re.compile(r"Epoch: (\d+)/.* foreground_labeled: ([\d.e-]+) foreground_unlabeled: ([\d.e-]+)")
"""Epoch and the two fractions, in a line that training logs."""
Row = dict[str, str]


_running: set[subprocess.Popen[bytes]] = set()
"""Trainings and evaluations of this process, to be stopped with it."""


class CellError(RuntimeError):
    """A cell that cannot be run or failed, in one sentence."""


@dataclass(frozen=True)
class Cell:
    """One method, trained with so many labels from one seed."""

    method: str
    labels: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.method}-{self.labels}-{self.seed}"


@dataclass(frozen=True)
class Plan:
    """What all cells have in common.

    Attributes:
        dataset_dir: absolute.
        output_dir: absolute; a cell's folder is ``output_dir/cells/NAME``.
        config_file: override files between ``train.json`` and the method's, absolute.
        overrides: keys of the config and their values.
        checkpoint: ``last`` or ``best``.
        test_scans: override file that evaluates on the test scans, absolute, or None for the validation scans.
    """

    dataset_dir: Path
    output_dir: Path
    config_file: list[Path]
    overrides: dict[str, Any]
    checkpoint: str
    test_scans: Path | None

    def folder(self, cell: Cell) -> Path:
        return self.output_dir / "cells" / cell.name

    def evaluation(self, cell: Cell) -> Path:
        scans = "validation" if self.test_scans is None else f"test-{_digest(self.test_scans.read_bytes())}"
        return self.folder(cell) / f"{scans}-{self.checkpoint}"

    def files(self, cell: Cell) -> list[Path]:
        configs = BUNDLE / "configs"
        return [configs / "train.json", *self.config_file, configs / "methods" / f"{cell.method}.yaml"]

    def identity(self, cell: Cell) -> dict[str, Any]:
        """What a training depends on: a finished cell with another identity answers another question.

        Scans and labels count by name and content, wherever they lie; the bundle's version stands for its code.
        """
        version = json.loads((BUNDLE / "configs" / "metadata.json").read_text())["version"]
        digests = [_digest(path.read_bytes()) for path in self.files(cell)]
        cases = find_cases(self.dataset_dir, self.overrides.get("datalist"), cell.labels)
        streams = [
            [{key: (Path(path).name, _content(path)) for key, path in case.items()} for case in stream]
            for stream in (cases.labeled, cases.unlabeled, cases.validation)
        ]
        scans = _digest(json.dumps(streams).encode())
        overrides = {key: value for key, value in self.overrides.items() if key != "datalist"}  # counts in its scans
        return {"version": version, "scans": scans, "configs": digests, "overrides": overrides}

    def changed(self, cell: Cell, known: Mapping[str, Any]) -> str:
        """Names of what is not as it was when the cell was run."""
        return ", ".join(key for key, value in self.identity(cell).items() if known["identity"].get(key) != value)

    def config(self, cell: Cell) -> dict[str, Any]:
        """The keys of the cell's config at its top."""
        config = ConfigParser.load_config_files([str(path) for path in self.files(cell)])
        return {**config, **self.overrides}

    def missing(self, cell: Cell) -> str | None:
        """Why there is no result of the cell for this plan; None where there is one."""
        record = self.folder(cell) / "cell.json"
        if not record.is_file():
            return "it was not run"
        if changed := self.changed(cell, json.loads(record.read_text())):
            return f"it was run with another {changed}"
        return None if (self.evaluation(cell) / "cases.csv").is_file() else "it is not finished"


def benchmark(
    dataset_dir: str,
    output_dir: str,
    methods: str | Sequence[str] = ("supervised", "dtc", "dbisl"),
    labels: int | str | Sequence[int | str] = (4, 8, 16),
    seeds: int | Sequence[int] = (0, 1, 2),
    config_file: str | Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
    checkpoint: str = "last",
    baselines: str | Sequence[str] = ("supervised", "dtc"),
    jobs: int | None = None,
    report_only: bool = False,
    evaluate_on_test_scans: str | None = None,
) -> None:
    """Run the cells that are missing, then write the table.

    Args:
        dataset_dir: labeled and validation scans, as training takes them.
        output_dir: everything goes there.
        methods: names of files in ``bundle/configs/methods``, without ``.yaml``.
        labels: how many scans keep their label; ``"all"`` is all of them.
        seeds: of the trainings; differences between methods are paired by seed and case.
        config_file: override file or files after ``train.json``, such as ``bundle/configs/datasets/la.yaml``.
        overrides: more keys of the config with their values, as ``"{'epochs': 6}"``; the same for every method, none of
            which may set them otherwise.
        checkpoint: ``last``, or ``best`` on the validation scans.
        baselines: methods with which each of the others is compared.
        jobs: trainings at a time; by default one a GPU or, without one, one a core.
        report_only: whether to write the report of the cells that are finished and train nothing.
        evaluate_on_test_scans: folder with ``images`` and ``labels`` on which to evaluate instead of the validation
            scans. Only for the last look of all: whoever chooses anything by these figures has no test scans left.
    """
    methods, labels, seeds, baselines = (ensure_tuple(value) for value in (methods, labels, seeds, baselines))
    files = [Path(file).resolve() for file in ensure_tuple(config_file)]
    overrides = {} if overrides is None else overrides
    _require_choices(methods, labels, seeds, baselines, files, overrides, checkpoint, jobs)
    output = Path(output_dir).resolve()
    options = json.loads(json.dumps(overrides))  # as a cell's record will hold them
    if options.get("datalist") and Path(options["datalist"]).is_file():
        options["datalist"] = str(Path(options["datalist"]).resolve())  # the trainings run in the bundle's folder
    cases = find_cases(dataset_dir, options.get("datalist"))
    counts = [len(cases.labeled) if count == ALL else int(count) for count in labels]
    if max(counts) > len(cases.labeled):
        raise SystemExit(
            f"labels has {max(counts)}: expected at most {len(cases.labeled)}, the labeled scans of {dataset_dir}."
        )
    test_scans = None
    if evaluate_on_test_scans is not None:
        used = [case["image"] for case in (*cases.labeled, *cases.unlabeled, *cases.validation)]
        test_scans = _test_scans(Path(evaluate_on_test_scans), used, output)
    plan = Plan(
        Path(dataset_dir).resolve(),
        output,
        files,
        options,
        checkpoint,
        test_scans,
    )
    _require_common(plan, methods)
    cells = list(dict.fromkeys(Cell(method, count, seed) for count in counts for seed in seeds for method in methods))
    failures = [] if report_only else _run_cells(plan, cells, jobs)
    missing = {cell: plan.missing(cell) for cell in cells}
    finished = [cell for cell, why in missing.items() if why is None]
    if report_only:
        left_out = [f"{cell.name} is left out: {why}." for cell, why in missing.items() if why is not None]
        for sentence in left_out:
            print(sentence)
        if not finished:
            raise SystemExit(f"{output} has no finished cell of this comparison: {left_out[0]}")
    if finished:
        _report(plan, finished, baselines)
    if failures:
        raise SystemExit("\n".join(failures))


def _require_choices(
    methods: Sequence[Any],
    labels: Sequence[Any],
    seeds: Sequence[Any],
    baselines: Sequence[Any],
    config_file: Sequence[Path],
    overrides: Any,
    checkpoint: str,
    jobs: Any,
) -> None:
    """One sentence about the first argument that cannot be used."""
    if checkpoint not in CHECKPOINTS:
        raise SystemExit(f"checkpoint is {checkpoint!r}: expected one of {list(CHECKPOINTS)}.")
    known = sorted(path.stem for path in (BUNDLE / "configs" / "methods").glob("*.yaml"))
    for name, chosen in (("methods", methods), ("baselines", baselines)):
        if unknown := [method for method in chosen if method not in known]:
            raise SystemExit(f"{name} has {unknown}: expected some of {known}.")
    for name, chosen, least in (("labels", labels, 1), ("seeds", seeds, 0)):
        also = (ALL,) if name == "labels" else ()
        if wrong := [value for value in chosen if value not in also and not (type(value) is int and value >= least)]:
            or_all = f" or {ALL!r}" if also else ""
            raise SystemExit(f"{name} has {wrong}: expected whole numbers from {least}{or_all}.")
    for name, chosen in (("methods", methods), ("labels", labels), ("seeds", seeds)):
        if not chosen:
            raise SystemExit(f"{name} is empty: expected at least one.")
    if jobs is not None and not (type(jobs) is int and jobs >= 1):
        raise SystemExit(f"jobs is {jobs!r}: expected a whole number from 1.")
    if not isinstance(overrides, Mapping):
        raise SystemExit(f"overrides is {overrides!r}: expected keys of the config with their values.")
    if taken := [key for key in overrides if key in OF_CELLS]:
        raise SystemExit(f"overrides has {taken}: expected none of {list(OF_CELLS)}, which each cell sets.")
    for path in config_file:
        if not path.is_file():
            raise SystemExit(
                f"config_file {path} is no file: expected override files such as configs/datasets/la.yaml."
            )
        if "datalist" in ConfigParser.load_config_file(path):
            raise SystemExit(f"config_file {path} has datalist: expected it in overrides.")


def _require_common(plan: Plan, methods: Sequence[str]) -> None:
    """On the command line overrides come last: one that a method sets too would make it another method."""
    for method in methods:
        *_, path = plan.files(Cell(method, 0, 0))
        for own in ConfigParser.load_config_file(path):
            for key in plan.overrides:
                if f"{own}#".startswith(f"{key}#") or f"{key}#".startswith(f"{own}#"):
                    raise SystemExit(f"overrides has {key}: expected a key that {path} does not set ({own}).")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _content(path: str) -> str:
    """Digest of a file, read again only when it has changed."""
    stat = os.stat(path)
    return _content_at(path, stat.st_size, stat.st_mtime_ns)


@cache
def _content_at(path: str, size: int, modified: int) -> str:
    return _digest(Path(path).read_bytes())


# ---- running ----


def _run_cells(plan: Plan, cells: Sequence[Cell], jobs: int | None) -> list[str]:
    """Run what is missing; one sentence a cell that failed."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
    gpus = list(takewhile(lambda device: device.strip() != "-1", devices))  # as CUDA reads it
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = jobs or len(gpus) or cores
    environments: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
    for job in range(jobs):
        # Threads that wait for each other's cores cost ten times the time; who sets their number shares the machine.
        threads = os.environ.get("OMP_NUM_THREADS", str(max(1, cores // jobs)))
        share = {"CUDA_VISIBLE_DEVICES": gpus[job % len(gpus)]} if gpus else {"OMP_NUM_THREADS": threads}
        environments.put({**os.environ, **share})
    stopped = threading.Event()

    def run(cell: Cell) -> Cell:
        environment = environments.get()
        try:
            if not stopped.is_set():
                _run_cell(plan, cell, environment)
        finally:
            environments.put(environment)
        return cell

    failures = []
    started = time.monotonic()
    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(run, cell): cell for cell in cells}
        try:
            for done, future in enumerate(as_completed(futures), 1):
                left = (time.monotonic() - started) / done * (len(cells) - done) / 60
                error = future.exception()
                if error is None:
                    message = "finished"
                elif isinstance(error, CellError):
                    message = f"failed: {error}"
                    failures.append(f"{futures[future].name} {message}")
                else:
                    raise error
                print(f"[{done}/{len(cells)}, about {left:.0f} min left] {futures[future].name} {message}", flush=True)
        except BaseException:
            # Those that wait are not started; those that run go on from their last checkpoint another time.
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            while not all(future.done() for future in futures):  # one may have been about to start its training
                for process in list(_running):
                    process.terminate()
                time.sleep(0.2)
            raise
    return failures


@contextmanager
def _alone(folder: Path) -> Iterator[int]:
    """Hold a cell's folder, by a lock that what runs in it inherits by its descriptor: two trainings would mix."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CellError(f"{folder} is in use: expected no other benchmark or training in it.") from None
        yield file.fileno()


def _run_cell(plan: Plan, cell: Cell, environment: Mapping[str, str]) -> None:
    with _alone(plan.folder(cell)) as lock:
        _train_and_evaluate(plan, cell, environment, lock)


def _train_and_evaluate(plan: Plan, cell: Cell, environment: Mapping[str, str], lock: int) -> None:
    folder, evaluation = plan.folder(cell), plan.evaluation(cell)
    record = folder / "cell.json"
    known: dict[str, Any] = {"identity": plan.identity(cell), "training_seconds": 0.0}
    if any((folder / name).is_file() for name in ("checkpoint.pt", *CHECKPOINTS.values())) or any(
        folder.glob("*/cases.csv")
    ):
        known = json.loads(record.read_text())
    if changed := plan.changed(cell, known):
        raise CellError(f"{folder} was run with another {changed}: expected the same, or an empty folder.")
    _write(record, json.dumps(known, indent=4) + "\n")

    options = {**plan.overrides, "dataset_dir": plan.dataset_dir, "ckpt_dir": folder}
    files = plan.files(cell)
    needed = () if (evaluation / "cases.csv").is_file() else ("model_final.pt", CHECKPOINTS[plan.checkpoint])
    if not all((folder / name).is_file() for name in needed):
        training = {**options, "output_dir": folder, "num_labeled": cell.labels, "seed": cell.seed}
        if (folder / "checkpoint.pt").is_file():
            training["resume"] = True
        started = time.monotonic()
        try:
            run_bundle("training", files, training, folder / "training.log", environment, (lock,))
        finally:
            known["training_seconds"] += time.monotonic() - started
            _write(record, json.dumps(known, indent=4) + "\n")
    if not (evaluation / "cases.csv").is_file():
        files = [*files, BUNDLE / "configs" / "evaluate.json", *([plan.test_scans] if plan.test_scans else [])]
        evaluating = {**options, "output_dir": evaluation, "ckpt_path": folder / CHECKPOINTS[plan.checkpoint]}
        run_bundle("evaluating", files, evaluating, folder / "evaluating.log", environment, (lock,))


def run_bundle(
    run_id: str,
    files: Sequence[Path],
    options: Mapping[str, Any],
    log: Path,
    environment: Mapping[str, str],
    inherited: Sequence[int] = (),
) -> None:
    """One command of the bundle, in a process of its own, whose output is appended to a log.

    Args:
        run_id: ``training`` or ``evaluating``.
        files: of the config, one over the other.
        options: keys of the config that come after them.
        log: file.
        environment: variables of the process.
        inherited: file descriptors that it keeps open.

    Raises:
        CellError: when it fails; the sentence has the last line of its output.
    """
    command = [
        sys.executable,
        "-m",
        "monai.bundle",
        "run",
        run_id,
        "--config_file",
        repr([str(file) for file in files]),
    ]
    command += [text for name, value in options.items() for text in (f"--{name}", str(value))]
    with log.open("a") as file:
        process = subprocess.Popen(command, cwd=BUNDLE, env=environment, stdout=file, stderr=file, pass_fds=inherited)
        _running.add(process)
        code = process.wait()
        _running.discard(process)
    if code != 0:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise CellError(f"{run_id} ended with code {code}, see {log}: {lines[-1] if lines else 'no output'}")


def _test_scans(folder: Path, used: Sequence[str], output: Path) -> Path:
    """An override file that evaluates on all labeled scans of a folder, none of which training may have seen."""
    cases = find_cases(folder)
    chosen = [*cases.labeled, *cases.validation]
    contents = {_content(image) for image in used}
    seen = sorted(Path(case["image"]).name for case in chosen if _content(case["image"]) in contents)
    if seen:
        raise SystemExit(f"{folder}: {', '.join(seen)} are training or validation scans too: expected others.")
    names = {Path(image).name for image in used}
    if namesakes := [name for case in chosen if (name := Path(case["image"]).name) in names]:
        print(f"{folder}: {len(namesakes)} scans have names of training or validation scans, but other contents.")
    output.mkdir(parents=True, exist_ok=True)
    path = output / "test_scans.json"
    _write(path, json.dumps({"validate#dataset#data": chosen}, indent=4) + "\n")
    return path


# ---- reporting ----


def _report(plan: Plan, cells: Sequence[Cell], baselines: Sequence[str]) -> None:
    rows = {cell: read_cases(plan.evaluation(cell) / "cases.csv") for cell in cells}
    columns = ["method", "labels", "seed", *next(iter(rows.values()))[0]]
    with (temporary := plan.output_dir / f".results.csv.{os.getpid()}").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for cell, of_cell in rows.items():
            of_all = {"method": cell.method, "labels": cell.labels, "seed": cell.seed}
            writer.writerows({**of_all, **row} for row in of_cell)
    os.replace(temporary, plan.output_dir / "results.csv")
    seconds = {cell: json.loads((plan.folder(cell) / "cell.json").read_text())["training_seconds"] for cell in cells}
    answers = {cell: str(plan.config(cell)["answer"]) for cell in cells}
    scored = {cell: [row for row in of_cell if row["task"] == answers[cell]] for cell, of_cell in rows.items()}
    foreground = {cell: foreground_found(plan.folder(cell) / "training.log") for cell in cells}
    table = _table(scored, answers, foreground, seconds, baselines)
    caption = _caption(plan, scored)
    _write(plan.output_dir / "table.md", f"{caption}\n\n{table}\n")
    _plot(scored, plan.output_dir / "label_efficiency.png", caption.split(";")[0])
    print(f"\n{caption}\n\n{table}")


def read_cases(path: Path) -> list[Row]:
    """The rows of an evaluation's ``cases.csv``."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def foreground_found(log: Path) -> float | None:
    """The fraction of foreground found on unlabeled scans over that in the labels, in the last epoch that was logged.

    Near 0 both tasks have collapsed to background. None where the training saw no unlabeled scan.
    """
    found = [match.groups() for match in FOREGROUND.finditer(log.read_text(errors="replace"))]
    last = [(float(labeled), float(unlabeled)) for epoch, labeled, unlabeled in found if epoch == found[-1][0]]
    labeled, unlabeled = (sum(values) for values in zip(*last, strict=True)) if last else (0.0, 0.0)
    return unlabeled / labeled if labeled > 0 else None


def case_means(rows: Sequence[Row], metric: str) -> dict[str, float]:
    """Mean of a metric over the classes of each case, where it is defined; a case for which it never is has none."""
    values: dict[str, list[float]] = {}
    for row in rows:
        if row[metric]:
            values.setdefault(row["case"], []).append(float(row[metric]))
    return {case: statistics.fmean(of_case) for case, of_case in values.items()}


def paired_difference(
    ours: Mapping[int, Mapping[str, float]], theirs: Mapping[int, Mapping[str, float]]
) -> tuple[float, float, float] | None:
    """Mean difference of two methods and its 95% confidence interval, or None without a common seed and case.

    A case's difference is the mean over the common seeds; cases are resampled with replacement (percentile bootstrap,
    seeded).

    Args:
        ours, theirs: value by case, by seed.

    Returns:
        Mean, lower and upper end.
    """
    seeds = sorted(set(ours) & set(theirs))
    cases = [case for case in next(iter(ours.values())) if all(case in of[s] for of in (ours, theirs) for s in seeds)]
    if not seeds or not cases:
        return None
    differences = np.array([[ours[seed][case] - theirs[seed][case] for seed in seeds] for case in cases]).mean(axis=1)
    chosen = np.random.default_rng(0).integers(0, len(cases), size=(RESAMPLES, len(cases)))
    low, high = np.percentile(differences[chosen].mean(axis=1), [2.5, 97.5])
    return float(differences.mean()), float(low), float(high)


def _groups(cells: Mapping[Cell, Any]) -> dict[tuple[int, str], list[Cell]]:
    groups: dict[tuple[int, str], list[Cell]] = {}
    for cell in sorted(cells, key=lambda cell: cell.labels):
        groups.setdefault((cell.labels, cell.method), []).append(cell)
    return groups


def _table(
    scored: Mapping[Cell, list[Row]],
    answers: Mapping[Cell, str],
    foreground: Mapping[Cell, float | None],
    seconds: Mapping[Cell, float],
    baselines: Sequence[str],
) -> str:
    groups = _groups(scored)
    baselines = [name for name in baselines if any(method == name for _, method in groups)]
    titles = ["labels", "method", "answer", "seeds", *METRICS.values(), "missed"]
    titles += [f"Dice less {name}'s [95% CI]" for name in baselines]
    titles += ["foreground (%)", "training (min)"]
    lines = ["| " + " | ".join(titles) + " |", "|" + " --- |" * len(titles)]
    for (labels, method), cells in groups.items():
        cols = [str(labels), method, answers[cells[0]], str(len(cells))]
        for metric in METRICS:
            scale = 100 if metric == "dice" else 1
            means = [case_means(scored[cell], metric) for cell in cells]
            cols.append(_mean_and_deviation([scale * statistics.fmean(of.values()) for of in means if of]))
        cols.append(str(sum(row["outcome"] == "missed" for cell in cells for row in scored[cell])))
        for baseline in baselines:
            cols.append(_difference(scored, cells, groups.get((labels, baseline), []), method == baseline))
        ratios = [100 * ratio for cell in cells if (ratio := foreground[cell]) is not None]
        cols.append(f"{statistics.fmean(ratios):.0f}" if ratios else "-")
        cols.append(f"{statistics.median(seconds[cell] for cell in cells) / 60:.1f}")
        lines.append("| " + " | ".join(cols) + " |")
    return "\n".join(lines)


def _mean_and_deviation(values: Sequence[float]) -> str:
    if not values:
        return "undefined"
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{deviation}"


def _difference(scored: Mapping[Cell, list[Row]], ours: Sequence[Cell], theirs: Sequence[Cell], same: bool) -> str:
    our_seeds, their_seeds = (
        {cell.seed: case_means(scored[cell], "dice") for cell in cells} for cells in (ours, theirs)
    )
    difference = None if same else paired_difference(our_seeds, their_seeds)
    if difference is None:
        return "-"
    mean, low, high = (100 * value for value in difference)
    common = len(set(our_seeds) & set(their_seeds))
    of_seeds = f" ({common} of the seeds)" if common < len(our_seeds) else ""
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]{of_seeds}"


def _caption(plan: Plan, scored: Mapping[Cell, list[Row]]) -> str:
    scans = len({row["case"] for rows in scored.values() for row in rows})
    kind = "TEST" if plan.test_scans else "validation"
    changed = ", ".join(f"{name} = {value}" for name, value in plan.overrides.items()) or "none"
    config = plan.config(next(iter(scored)))
    length = f"{config['epochs']} epochs of {config['iterations_per_epoch']} iterations"
    chosen = {"last": "the last checkpoint", "best": "the checkpoint that is best on the validation scans"}
    return (
        f"{plan.dataset_dir.name}, {scans} {kind} scans; {chosen[plan.checkpoint]} of each training of {length}, the "
        "answer that is its method's. Mean ± standard deviation over the seeds of the mean over cases; a class that "
        "was missed has Dice 0 and no distance. "
        "Differences are paired by seed and case, in points of Dice; their interval is a percentile bootstrap over the "
        f"cases ({RESAMPLES} resamples). Foreground: what is found on the unlabeled scans in the last epoch, over what "
        "the labels have; near 0 a training has collapsed. "
        f"Config: {', '.join(path.name for path in plan.config_file) or 'train.json'}; "
        f"overrides: {changed}. Training time: median of the seeds, {platform.machine()}, torch {torch.__version__}."
    )


def _plot(scored: Mapping[Cell, list[Row]], path: Path, title: str) -> None:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    groups = _groups(scored)
    for method in dict.fromkeys(method for _, method in groups):
        counts = [labels for labels, name in groups if name == method]
        dice = [
            [100 * statistics.fmean(case_means(scored[cell], "dice").values()) for cell in groups[labels, method]]
            for labels in counts
        ]
        spread = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in dice]
        axes.errorbar(
            counts, [statistics.fmean(values) for values in dice], spread, marker="o", capsize=3, label=method
        )
    axes.set_xscale("log", base=2)
    ticks = sorted({labels for labels, _ in groups})
    axes.set_xticks(ticks, [str(labels) for labels in ticks])
    axes.set(xlabel="labeled scans", ylabel="Dice (%)", title=title)
    axes.legend()
    axes.grid(alpha=0.3)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    figure.savefig(temporary, dpi=120, format="png")
    os.replace(temporary, path)


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    os.replace(temporary, path)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # stopped like by Ctrl-C
    fire.Fire(benchmark)
