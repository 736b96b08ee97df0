"""Simulate an annotator to measure what it is worth to choose the next scan by its uncertainty.

    python scripts/simulate_annotation.py --dataset_dir DATA/hippocampus --output_dir simulation

starts from a few labels and trains on them and on all other scans without their labels. In each round a strategy
chooses the next scans, their true labels are added, and the training goes on from the last weights. The script writes
``table.md`` (Dice on the validation scans, by round), ``rounds.png``, and ``rounds.csv`` with the chosen scans. Each
round is a real training in a folder of its own. You can stop the script at any moment and start it again.
"""

from __future__ import annotations

import csv
import io
import json
import os
import random
import statistics
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fire
from monai.utils import ensure_tuple

from dbisl.data import Cases, find_cases
from dbisl.engines import ScanScores

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts import each other from the repository's root
from scripts.benchmarks.cells import run_bundle
from scripts.benchmarks.common import BUNDLE, markdown_table, write_json, write_text
from scripts.benchmarks.report import case_means, mean_and_deviation, plot_dice, read_cases

STRATEGIES = ("uncertainty", "random", "entropy")
SCORES = {"uncertainty": "disagreement", "entropy": "entropy"}
"""The score by which a strategy chooses: a key of what ``ScanScores`` returns."""
NETWORK_KEYS = ("network_def", "features", "levels", "dual_task")
"""Config keys that change the network, and so must be the same for the scores."""


@dataclass(frozen=True)
class Simulation:
    """What all runs have in common: the cases, and arguments of :func:`simulate`."""

    dataset_dir: Path
    output_dir: Path
    cases: Cases
    start: int
    step: int
    rounds: int
    overrides: Mapping[str, Any]

    def folder(self, strategy: str, seed: int, index: int) -> Path:
        """Return the folder of a round. All strategies share the first round, before anything is chosen."""
        name = f"start-{seed}" if index == 0 else f"{strategy}-{seed}-{index}"
        return self.output_dir / "rounds" / name

    def labels(self, index: int) -> int:
        """Return the number of labeled scans of a round."""
        return self.start + index * self.step


def simulate(
    dataset_dir: str,
    output_dir: str,
    strategies: str | Sequence[str] = STRATEGIES,
    seeds: int | Sequence[int] = (0, 1, 2),
    start: int = 2,
    step: int = 2,
    rounds: int = 6,
    overrides: Mapping[str, Any] | None = None,
    jobs: int = 1,
) -> None:
    """Run the rounds that are missing, then write the table.

    Args:
        dataset_dir: data set whose labeled training scans are annotated in rounds; its validation scans measure.
        output_dir: folder for all results.
        strategies: how to choose the next scans: ``uncertainty`` (the two tasks disagree most), ``entropy`` or
            ``random``.
        seeds: seeds of the first labels, of the trainings, and of the random choices.
        start: number of labels of the first training.
        step: number of labels that each round adds.
        rounds: number of rounds after the first training.
        overrides: config keys with their values, as ``"{'epochs': 3}"``.
        jobs: number of trainings at a time, one core each.

    Raises:
        SystemExit: when a strategy does not exist, or the data set has fewer labels than the last round needs.
    """
    strategies, seeds = ensure_tuple(strategies), ensure_tuple(seeds)
    unknown = sorted(set(strategies) - set(STRATEGIES))
    if unknown:
        raise SystemExit(f"strategies has {unknown}: expected some of {list(STRATEGIES)}.")
    cases = find_cases(dataset_dir)
    most = start + rounds * step
    if most > len(cases.labeled):
        raise SystemExit(f"{rounds} rounds end at {most} labels, but {dataset_dir} has {len(cases.labeled)}.")
    simulation = Simulation(
        Path(dataset_dir).resolve(), Path(output_dir).resolve(), cases, start, step, rounds, dict(overrides or {})
    )
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda seed: _first_round(simulation, seed), seeds))
        runs = [(strategy, seed) for seed in seeds for strategy in strategies]
        list(pool.map(lambda run: _later_rounds(simulation, *run), runs))
    _report(simulation, strategies, seeds)


def _first_round(simulation: Simulation, seed: int) -> None:
    """Train on labels that a seed chooses."""
    images = [case["image"] for case in simulation.cases.labeled]
    chosen = random.Random(seed).sample(images, simulation.start)
    _train(simulation, simulation.folder("", seed, 0), seed, chosen, None)


def _later_rounds(simulation: Simulation, strategy: str, seed: int) -> None:
    """Choose, label and train, round by round."""
    for index in range(1, simulation.rounds + 1):
        folder, before = (simulation.folder(strategy, seed, place) for place in (index, index - 1))
        weights = before / "model_final.pt"
        if (folder / "labeled.json").is_file():
            labeled = json.loads((folder / "labeled.json").read_text())
        else:
            labeled = json.loads((before / "labeled.json").read_text())
            candidates = [case["image"] for case in simulation.cases.labeled if case["image"] not in labeled]
            labeled += _choose(simulation, strategy, random.Random(1000 * seed + index), candidates, weights)
        _train(simulation, folder, seed, labeled, weights)
        print(f"{strategy}, seed {seed}: {simulation.labels(index)} labels, Dice {_dice(folder):.2f}", flush=True)


def _choose(
    simulation: Simulation, strategy: str, generator: random.Random, images: Sequence[str], weights: Path
) -> list[str]:
    """Return the images to annotate next, the least certain first."""
    if strategy == "random":
        return generator.sample(list(images), simulation.step)
    overrides = {key: value for key, value in simulation.overrides.items() if key.startswith(NETWORK_KEYS)}
    scores = ScanScores(BUNDLE, weights, overrides=overrides)
    values = {image: scores(image)[SCORES[strategy]] for image in images}
    return sorted(values, key=values.__getitem__, reverse=True)[: simulation.step]


def _train(simulation: Simulation, folder: Path, seed: int, labeled: Sequence[str], weights: Path | None) -> None:
    """Train on some of the labels, from weights if they are given, and evaluate; do nothing that is done already."""
    if (folder / "cases.csv").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "labeled.json", list(labeled))
    chosen = set(labeled)
    cases = simulation.cases
    datalist = {
        "labeled": [case for case in cases.labeled if case["image"] in chosen],
        "unlabeled": [{"image": case["image"]} for case in cases.labeled if case["image"] not in chosen],
        "validation": cases.validation,
    }
    datalist["unlabeled"] += cases.unlabeled
    write_json(folder / "datalist.json", datalist)
    files = [BUNDLE / "configs" / "train.json"]
    if weights is not None:
        config = json.loads(files[0].read_text())
        load = f"$@network.load_state_dict(torch.load({str(weights)!r}, weights_only=True))"
        write_json(folder / "go_on.json", {"initialize": [*config["initialize"], load]})
        files.append(folder / "go_on.json")
    options = {
        **simulation.overrides,
        "dataset_dir": simulation.dataset_dir,
        "datalist": folder / "datalist.json",
        "ckpt_dir": folder,
        "output_dir": folder,
    }
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if not (folder / "model_final.pt").is_file():
        epochs = simulation.overrides.get("epochs", json.loads(files[0].read_text())["epochs"])
        training = {"val_interval": epochs, **options, "seed": seed}
        if (folder / "checkpoint.pt").is_file():
            training["resume"] = True
        run_bundle("training", files, training, folder / "training.log", environment)
    evaluating = {**options, "ckpt_path": folder / "model_final.pt", "max_previews": 0}
    files = [files[0], BUNDLE / "configs" / "evaluate.json"]
    run_bundle("evaluating", files, evaluating, folder / "evaluating.log", environment)


def _dice(folder: Path) -> float:
    """Return the Dice (%) of a round: the mean over the validation scans of the network's answer.

    That is the first task of the report: the fused one, or the only one of a network with one decoder.
    """
    rows = read_cases(folder / "cases.csv")
    answer = [row for row in rows if row["task"] == rows[0]["task"]]
    return 100 * statistics.fmean(case_means(answer, "dice").values())


def _report(simulation: Simulation, strategies: Sequence[str], seeds: Sequence[int]) -> None:
    """Write the table, the rounds and the figure, and print the table."""
    counts = [simulation.labels(index) for index in range(simulation.rounds + 1)]
    dice = {
        strategy: [[_dice(simulation.folder(strategy, seed, index)) for seed in seeds] for index in range(len(counts))]
        for strategy in strategies
    }
    caption = (
        f"{simulation.dataset_dir.name}, {len(simulation.cases.validation)} validation scans, {len(seeds)} seeds; Dice "
        "(%) of the last checkpoint, mean ± standard deviation over the seeds. Each training goes on from the one "
        f"before. Overrides: {dict(simulation.overrides) or 'none'}."
    )
    rows = [
        [str(count), *(mean_and_deviation(rounds[index]) for rounds in dice.values())]
        for index, count in enumerate(counts)
    ]
    text = f"{caption}\n\n{markdown_table(['labels', *strategies], rows)}\n"
    write_text(simulation.output_dir / "table.md", text)
    write_text(simulation.output_dir / "rounds.csv", _rounds(simulation, strategies, seeds))
    curves = {
        # Each strategy is drawn a little to the right of the one before, so that the bars do not hide each other.
        strategy: {count + 0.05 * simulation.step * place: values for count, values in zip(counts, rounds, strict=True)}
        for place, (strategy, rounds) in enumerate(dice.items())
    }
    plot_dice(curves, simulation.output_dir / "rounds.png", f"{simulation.dataset_dir.name}, validation")
    print("\n" + text)


def _rounds(simulation: Simulation, strategies: Sequence[str], seeds: Sequence[int]) -> str:
    """Return ``rounds.csv``: one row per round, with its Dice and the images (file names) whose labels it added."""
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["strategy", "seed", "labels", "dice", "added"])
    for seed in seeds:
        for strategy in strategies:
            before = 0
            for index in range(simulation.rounds + 1):
                folder = simulation.folder(strategy, seed, index)
                labeled = json.loads((folder / "labeled.json").read_text())
                added = " ".join(Path(image).name for image in labeled[before:])
                rows.writerow([strategy, seed, len(labeled), f"{_dice(folder):.3f}", added])
                before = len(labeled)
    return table.getvalue()


if __name__ == "__main__":
    fire.Fire(simulate)
