"""What choosing the next scan by uncertainty is worth: a simulated annotator whose labels are the true ones.

    python -m scripts.simulate_annotation --dataset_dir DATA/hippocampus --output_dir simulation

starts from a few labels, trains on them and on all scans without one, lets each strategy choose the next scans, adds
their labels, trains on from the last weights, and so on. It writes ``table.md`` (Dice on the validation scans by
round), ``rounds.png``, and ``rounds.csv`` with the scans that were chosen. Each round is a real training in a folder of
its own; it can be stopped and started again.
"""

from __future__ import annotations

import csv
import io
import json
import os
import random
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fire
from matplotlib.figure import Figure
from monai.utils import ensure_tuple

from dbisl.data import Cases, find_cases
from dbisl.engines import ScanScores
from scripts.benchmark import BUNDLE, case_means, read_cases, run_bundle

STRATEGIES = ("uncertainty", "random", "entropy")
SCORES = {"uncertainty": "disagreement", "entropy": "entropy"}


@dataclass(frozen=True)
class Simulation:
    """What all runs have in common; the arguments of :func:`simulate`."""

    dataset_dir: Path
    output_dir: Path
    cases: Cases
    start: int
    step: int
    rounds: int
    overrides: Mapping[str, Any]

    def folder(self, strategy: str, seed: int, index: int) -> Path:
        """The first round is the same for every strategy: nothing has been chosen yet."""
        name = f"start-{seed}" if index == 0 else f"{strategy}-{seed}-{index}"
        return self.output_dir / "rounds" / name

    def labels(self, index: int) -> int:
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
        dataset_dir: its labeled training scans are the ones to annotate, its validation scans measure.
        output_dir: everything goes there.
        strategies: ``uncertainty`` (the two tasks disagree most), ``entropy``, ``random``.
        seeds: of the first labels, of the trainings, and of random choices.
        start: labels of the first training.
        step: labels added in each round.
        rounds: how often.
        overrides: keys of the config and their values, as ``"{'epochs': 3}"``.
        jobs: trainings at a time, a core each.
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
    images = [case["image"] for case in simulation.cases.labeled]
    chosen = random.Random(seed).sample(images, simulation.start)
    _train(simulation, simulation.folder("", seed, 0), seed, chosen, None)


def _later_rounds(simulation: Simulation, strategy: str, seed: int) -> None:
    for index in range(1, simulation.rounds + 1):
        folder, before = (simulation.folder(strategy, seed, place) for place in (index, index - 1))
        weights = before / "model_final.pt"
        if (folder / "labeled.json").is_file():
            labeled = json.loads((folder / "labeled.json").read_text())
        else:
            labeled = json.loads((before / "labeled.json").read_text())
            left = [case["image"] for case in simulation.cases.labeled if case["image"] not in labeled]
            labeled += _choose(simulation, strategy, random.Random(1000 * seed + index), left, weights)
        _train(simulation, folder, seed, labeled, weights)
        print(f"{strategy}, seed {seed}: {simulation.labels(index)} labels, Dice {_dice(folder):.2f}", flush=True)


def _choose(
    simulation: Simulation, strategy: str, chance: random.Random, images: Sequence[str], weights: Path
) -> list[str]:
    if strategy == "random":
        return chance.sample(list(images), simulation.step)
    of_network = {key: value for key, value in simulation.overrides.items() if key.startswith("network_def")}
    scores = ScanScores(BUNDLE, weights, overrides=of_network)
    values = {image: scores(image)[SCORES[strategy]] for image in images}
    return sorted(values, key=values.__getitem__, reverse=True)[: simulation.step]


def _train(simulation: Simulation, folder: Path, seed: int, labeled: Sequence[str], weights: Path | None) -> None:
    """Train on some of the labels and evaluate; what is there already is not done again."""
    if (folder / "cases.csv").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "labeled.json", list(labeled))
    chosen = set(labeled)
    cases = simulation.cases
    datalist = {
        "labeled": [case for case in cases.labeled if case["image"] in chosen],
        "unlabeled": [{"image": case["image"]} for case in cases.labeled if case["image"] not in chosen],
        "validation": cases.validation,
    }
    datalist["unlabeled"] += cases.unlabeled
    _write(folder / "datalist.json", datalist)
    files = [BUNDLE / "configs" / "train.json"]
    if weights is not None:
        config = json.loads(files[0].read_text())
        load = f"$@network.load_state_dict(torch.load({str(weights)!r}, weights_only=True))"
        _write(folder / "go_on.json", {"initialize": [*config["initialize"], load]})
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
    rows = [row for row in read_cases(folder / "cases.csv") if row["task"] == "fused"]
    return 100 * statistics.fmean(case_means(rows, "dice").values())


def _report(simulation: Simulation, strategies: Sequence[str], seeds: Sequence[int]) -> None:
    counts = [simulation.labels(index) for index in range(simulation.rounds + 1)]
    dice = {
        strategy: [[_dice(simulation.folder(strategy, seed, index)) for seed in seeds] for index in range(len(counts))]
        for strategy in strategies
    }
    lines = [
        f"{simulation.dataset_dir.name}, {len(simulation.cases.validation)} validation scans, {len(seeds)} seeds; Dice "
        "(%) of the last checkpoint, mean ± standard deviation over the seeds. Each training goes on from the one "
        "before. "
        f"Overrides: {dict(simulation.overrides) or 'none'}.",
        "",
        "| labels | " + " | ".join(strategies) + " |",
        "|" + " --- |" * (len(strategies) + 1),
    ]
    for index, count in enumerate(counts):
        cells = [
            f"{statistics.fmean(values[index]):.2f}"
            + (f" ± {statistics.stdev(values[index]):.2f}" if len(seeds) > 1 else "")
            for values in dice.values()
        ]
        lines.append(f"| {count} | " + " | ".join(cells) + " |")
    text = "\n".join(lines) + "\n"
    _write(simulation.output_dir / "table.md", text)
    _write(simulation.output_dir / "rounds.csv", _rounds(simulation, strategies, seeds))
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for place, (strategy, values) in enumerate(dice.items()):
        spread = [statistics.stdev(of_seeds) if len(seeds) > 1 else 0.0 for of_seeds in values]
        beside = [count + 0.05 * simulation.step * place for count in counts]  # or the bars would hide each other
        axes.errorbar(beside, [statistics.fmean(v) for v in values], spread, marker="o", capsize=3, label=strategy)
    axes.set(xlabel="labeled scans", ylabel="Dice (%)", title=f"{simulation.dataset_dir.name}, validation")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(simulation.output_dir / ".rounds.png", dpi=120, format="png")
    os.replace(simulation.output_dir / ".rounds.png", simulation.output_dir / "rounds.png")
    print("\n" + text)


def _rounds(simulation: Simulation, strategies: Sequence[str], seeds: Sequence[int]) -> str:
    """One row a round: its Dice, and the images (by file name) whose labels it added, as they were chosen."""
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


def _write(path: Path, content: Any) -> None:
    """Write a text, or anything else as JSON; whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(content if isinstance(content, str) else json.dumps(content, indent=4) + "\n")
    os.replace(temporary, path)


if __name__ == "__main__":
    fire.Fire(simulate)
