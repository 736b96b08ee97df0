"""The cells of a comparison, and how they run.

A *cell* is one method, trained with a number of labels from one seed. It has a folder of its own, runs as the bundle's
own commands, each in a process of its own, and goes on from its last checkpoint when it was stopped.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import queue
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

import torch
from monai.bundle import ConfigParser

from dbisl.data import find_cases
from scripts.benchmarks.common import BUNDLE, last_line, write_json

CHECKPOINTS = {"last": "model_final.pt", "best": "model.pt"}
"""File of each checkpoint that a training leaves."""

_running: set[subprocess.Popen[bytes]] = set()
"""Trainings and evaluations of this process, to be stopped with it."""


class CellError(RuntimeError):
    """A cell that failed or cannot be run; the message is one sentence."""


@dataclass(frozen=True)
class Cell:
    """One method, trained with a number of labels from one seed."""

    method: str
    labels: int
    seed: int

    @property
    def name(self) -> str:
        """Name of the cell, and of its folder."""
        return f"{self.method}-{self.labels}-{self.seed}"


@dataclass(frozen=True)
class Plan:
    """What all cells of a comparison have in common.

    Attributes:
        dataset_dir: folder of the labeled and validation scans, absolute.
        output_dir: folder of the results, absolute; a cell's folder is ``output_dir/cells/NAME``.
        config_file: override files between ``train.json`` and the method's, absolute.
        overrides: config keys with their values.
        checkpoint: which weights are evaluated, ``last`` or ``best``.
        test_scans: override file that evaluates on the test scans, absolute; None: the validation scans.
    """

    dataset_dir: Path
    output_dir: Path
    config_file: list[Path]
    overrides: dict[str, Any]
    checkpoint: str
    test_scans: Path | None

    def folder(self, cell: Cell) -> Path:
        """Return the folder of a cell."""
        return self.output_dir / "cells" / cell.name

    def evaluation(self, cell: Cell) -> Path:
        """Return the folder of a cell's evaluation, by scans and checkpoint."""
        scans = "validation" if self.test_scans is None else f"test-{_digest(self.test_scans.read_bytes())}"
        return self.folder(cell) / f"{scans}-{self.checkpoint}"

    def config_files(self, cell: Cell) -> list[Path]:
        """Return the config files of a cell's training, one over the other."""
        configs = BUNDLE / "configs"
        return [configs / "train.json", *self.config_file, configs / "methods" / f"{cell.method}.yaml"]

    def config(self, cell: Cell) -> dict[str, Any]:
        """Return the top-level keys of a cell's config, not resolved."""
        config = ConfigParser.load_config_files([str(path) for path in self.config_files(cell)])
        return {**config, **self.overrides}

    def identity(self, cell: Cell) -> dict[str, Any]:
        """Return what a cell's training depends on: a result with another identity must not be reused.

        Scans and labels count by name and content, wherever they lie; the bundle's version stands for its code.
        """
        version = json.loads((BUNDLE / "configs" / "metadata.json").read_text())["version"]
        digests = [_digest(path.read_bytes()) for path in self.config_files(cell)]
        cases = find_cases(self.dataset_dir, self.overrides.get("datalist"), cell.labels)
        streams = [
            [{key: (Path(path).name, file_digest(path)) for key, path in case.items()} for case in stream]
            for stream in (cases.labeled, cases.unlabeled, cases.validation)
        ]
        scans = _digest(json.dumps(streams).encode())
        overrides = {key: value for key, value in self.overrides.items() if key != "datalist"}  # counts in its scans
        return {"version": version, "scans": scans, "configs": digests, "overrides": overrides}

    def changes(self, cell: Cell, record: Mapping[str, Any]) -> str:
        """Return the names of what has changed since a cell was recorded, with commas between them; "" for nothing."""
        return ", ".join(key for key, value in self.identity(cell).items() if record["identity"].get(key) != value)

    def why_missing(self, cell: Cell) -> str | None:
        """Return why a cell has no result for this plan; None where it has one."""
        record = self.folder(cell) / "cell.json"
        if not record.is_file():
            return "it was not run"
        if changed := self.changes(cell, json.loads(record.read_text())):
            return f"it was run with another {changed}"
        return None if (self.evaluation(cell) / "cases.csv").is_file() else "it is not finished"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def file_digest(path: str) -> str:
    """Return a digest of a file's content; the file is read again only when it has changed."""
    stat = os.stat(path)
    return _digest_at(path, stat.st_size, stat.st_mtime_ns)


@cache
def _digest_at(path: str, size: int, modified: int) -> str:
    return _digest(Path(path).read_bytes())


def run_cells(plan: Plan, cells: Sequence[Cell], jobs: int | None) -> list[str]:
    """Run the cells that are not finished.

    Args:
        plan: what the cells have in common.
        cells: the cells to run, in this order.
        jobs: number of trainings at a time; None: one per GPU or, without a GPU, one per core.

    Returns:
        One sentence for each cell that failed.
    """
    environments = _environments(jobs)
    stopped = threading.Event()

    def run(cell: Cell) -> Cell:
        environment = environments.get()
        try:
            if not stopped.is_set():
                with _locked(plan.folder(cell)) as lock:
                    _train_and_evaluate(plan, cell, environment, lock)
        finally:
            environments.put(environment)
        return cell

    failures = []
    started = time.monotonic()
    with ThreadPoolExecutor(environments.qsize()) as pool:
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
            # Cells that wait do not start; those that run go on from their last checkpoint another time.
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            while not all(future.done() for future in futures):  # one may have been about to start its training
                for process in list(_running):
                    process.terminate()
                time.sleep(0.2)
            raise
    return failures


def _environments(jobs: int | None) -> queue.SimpleQueue[dict[str, str]]:
    """Return the environment variables of each job: its GPU or, without a GPU, its number of threads."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
    gpus = list(takewhile(lambda device: device.strip() != "-1", devices))  # as CUDA reads it
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = jobs or len(gpus) or cores
    environments: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
    for job in range(jobs):
        # More threads than cores make a training ten times slower. A caller who sets their number shares the machine.
        threads = os.environ.get("OMP_NUM_THREADS", str(max(1, cores // jobs)))
        share = {"CUDA_VISIBLE_DEVICES": gpus[job % len(gpus)]} if gpus else {"OMP_NUM_THREADS": threads}
        environments.put({**os.environ, **share})
    return environments


@contextmanager
def _locked(folder: Path) -> Iterator[int]:
    """Lock a cell's folder, since two trainings in one folder would mix; yield the lock's file descriptor.

    A process that inherits the descriptor holds the lock as long as it runs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CellError(f"{folder} is in use: expected no other benchmark or training in it.") from None
        yield file.fileno()


def _train_and_evaluate(plan: Plan, cell: Cell, environment: Mapping[str, str], lock: int) -> None:
    folder, evaluation = plan.folder(cell), plan.evaluation(cell)
    record_file = folder / "cell.json"
    record: dict[str, Any] = {"identity": plan.identity(cell), "training_seconds": 0.0}
    if any((folder / name).is_file() for name in ("checkpoint.pt", *CHECKPOINTS.values())) or any(
        folder.glob("*/cases.csv")
    ):
        record = json.loads(record_file.read_text())
    if changed := plan.changes(cell, record):
        raise CellError(f"{folder} was run with another {changed}: expected the same, or an empty folder.")
    write_json(record_file, record)

    options = {**plan.overrides, "dataset_dir": plan.dataset_dir, "ckpt_dir": folder}
    files = plan.config_files(cell)
    needed = () if (evaluation / "cases.csv").is_file() else ("model_final.pt", CHECKPOINTS[plan.checkpoint])
    if not all((folder / name).is_file() for name in needed):
        training = {**options, "output_dir": folder, "num_labeled": cell.labels, "seed": cell.seed}
        if (folder / "checkpoint.pt").is_file():
            training["resume"] = True
        started = time.monotonic()
        try:
            run_bundle("training", files, training, folder / "training.log", environment, (lock,))
        finally:
            record["training_seconds"] += time.monotonic() - started
            write_json(record_file, record)
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
    """Run one command of the bundle in a process of its own.

    Args:
        run_id: ``training`` or ``evaluating``.
        files: config files, one over the other.
        options: config keys with the values that override the files.
        log: file to which the output of the command is appended.
        environment: environment variables of the process.
        inherited: file descriptors that the process keeps open.

    Raises:
        CellError: when the command fails; the message quotes the last line of its output.
    """
    command = [sys.executable, "-m", "monai.bundle", "run", run_id]
    command += ["--config_file", repr([str(file) for file in files])]
    command += [text for name, value in options.items() for text in (f"--{name}", str(value))]
    with log.open("a") as file:
        process = subprocess.Popen(command, cwd=BUNDLE, env=environment, stdout=file, stderr=file, pass_fds=inherited)
        _running.add(process)
        code = process.wait()
        _running.discard(process)
    if code != 0:
        raise CellError(f"{run_id} ended with code {code}, see {log}: {last_line(log.read_text(errors='replace'))}")
