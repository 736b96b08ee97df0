"""Compare methods on your own scans: one training and evaluation for each method, number of labels and seed.

    python scripts/benchmarks/compare.py --dataset_dir DATA --output_dir comparison \\
        --methods "['supervised','dtc','dbisl']" --labels "[4,8,'all']" --seeds "[0,1,2]"

runs every combination (a *cell*) that is not finished, each in a folder of its own, and writes ``results.csv`` (one row
per cell, case, task and class), ``table.md`` and ``label_efficiency.png``. You can stop it at any moment and start it
again: finished cells do not run again, the others go on from their last checkpoint. The methods are the files of
``bundle/configs/methods``.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fire
from monai.bundle import ConfigParser
from monai.utils import ensure_tuple

from dbisl.data import find_cases

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # scripts import each other from the repository's root
from scripts.benchmarks.cells import CHECKPOINTS, Cell, Plan, file_digest, run_cells
from scripts.benchmarks.common import BUNDLE, write_json
from scripts.benchmarks.report import write_report

ALL = "all"
CELL_KEYS = ("dataset_dir", "output_dir", "ckpt_dir", "ckpt_path", "num_labeled", "seed", "resume")
"""Config keys that each cell sets itself."""


def compare(
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
    """Run the cells that are not finished, then write the report.

    Args:
        dataset_dir: folder of the labeled and validation scans, in a layout that training reads.
        output_dir: folder for all results.
        methods: names of files in ``bundle/configs/methods``, without ``.yaml``.
        labels: numbers of scans that keep their label; ``"all"``: all of them.
        seeds: seeds of the trainings. Differences between methods are paired by seed and case.
        config_file: override file or files after ``train.json``, such as ``bundle/configs/datasets/la.yaml``.
        overrides: more config keys with their values, as ``"{'epochs': 6}"``. They hold for every method, and no method
            may set them itself.
        checkpoint: weights to evaluate: ``last``, or ``best`` on the validation scans.
        baselines: methods with which each of the others is compared.
        jobs: number of trainings at a time; by default one per GPU or, without a GPU, one per core.
        report_only: whether to train nothing and write the report of the finished cells.
        evaluate_on_test_scans: folder with ``images`` and ``labels`` to evaluate on instead of the validation scans.
            Use it once, at the very end: test scans by which anything was chosen are test scans no longer.

    Raises:
        SystemExit: when an argument cannot be used, or a cell failed; the message has one sentence for each.
    """
    methods, labels, seeds, baselines = (ensure_tuple(value) for value in (methods, labels, seeds, baselines))
    files = [Path(file).resolve() for file in ensure_tuple(config_file)]
    overrides = {} if overrides is None else overrides
    _check_choices(methods, labels, seeds, baselines, checkpoint, jobs)
    _check_overrides(files, overrides)
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
        test_scans = _write_test_scans(Path(evaluate_on_test_scans), used, output)
    plan = Plan(Path(dataset_dir).resolve(), output, files, options, checkpoint, test_scans)
    _check_methods(plan, methods)
    cells = list(dict.fromkeys(Cell(method, count, seed) for count in counts for seed in seeds for method in methods))
    failures = [] if report_only else run_cells(plan, cells, jobs)
    missing = {cell: plan.why_missing(cell) for cell in cells}
    finished = [cell for cell, why in missing.items() if why is None]
    if report_only:
        left_out = [f"{cell.name} is left out: {why}." for cell, why in missing.items() if why is not None]
        for sentence in left_out:
            print(sentence)
        if not finished:
            raise SystemExit(f"{output} has no finished cell of this comparison: {left_out[0]}")
    if finished:
        write_report(plan, finished, baselines)
    if failures:
        raise SystemExit("\n".join(failures))


def _check_choices(
    methods: Sequence[Any],
    labels: Sequence[Any],
    seeds: Sequence[Any],
    baselines: Sequence[Any],
    checkpoint: str,
    jobs: Any,
) -> None:
    """Refuse the first choice that cannot be used."""
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


def _check_overrides(config_file: Sequence[Path], overrides: Any) -> None:
    """Refuse overrides and override files that the cells cannot use."""
    if not isinstance(overrides, Mapping):
        raise SystemExit(f"overrides is {overrides!r}: expected config keys with their values.")
    if taken := [key for key in overrides if key in CELL_KEYS]:
        raise SystemExit(f"overrides has {taken}: expected none of {list(CELL_KEYS)}, which each cell sets.")
    for path in config_file:
        if not path.is_file():
            raise SystemExit(f"config_file {path} is not a file: expected an override file.")
        if "datalist" in ConfigParser.load_config_file(path):
            raise SystemExit(f"config_file {path} has datalist: expected it in overrides.")


def _check_methods(plan: Plan, methods: Sequence[str]) -> None:
    """Refuse overrides of what a method sets itself: they come last, and would make it another method."""
    for method in methods:
        *_, path = plan.config_files(Cell(method, 0, 0))
        for own in ConfigParser.load_config_file(path):
            for key in plan.overrides:
                if f"{own}#".startswith(f"{key}#") or f"{key}#".startswith(f"{own}#"):
                    raise SystemExit(f"overrides has {key}: expected a key that {path} does not set ({own}).")


def _write_test_scans(folder: Path, used: Sequence[str], output: Path) -> Path:
    """Write an override file that evaluates on all labeled scans of a folder, and return its path.

    Args:
        folder: test scans.
        used: images that training or validation uses.
        output: where to write the file.

    Raises:
        SystemExit: when training or validation uses one of the test scans, whatever its name.
    """
    cases = find_cases(folder)
    chosen = [*cases.labeled, *cases.validation]
    contents = {file_digest(image) for image in used}
    seen = sorted(Path(case["image"]).name for case in chosen if file_digest(case["image"]) in contents)
    if seen:
        raise SystemExit(f"{folder}: {', '.join(seen)} are training or validation scans too: expected others.")
    names = {Path(image).name for image in used}
    if namesakes := [name for case in chosen if (name := Path(case["image"]).name) in names]:
        print(f"{folder}: {len(namesakes)} scans have names of training or validation scans, but other contents.")
    output.mkdir(parents=True, exist_ok=True)
    path = output / "test_scans.json"
    write_json(path, {"validate#dataset#data": chosen})
    return path


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # ends as after Ctrl-C
    fire.Fire(compare)
