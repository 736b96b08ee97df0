"""Run DBiSL end to end on synthetic scans: make the data, train, evaluate, segment unseen scans, show the result.

    python scripts/demo.py --output_dir demo

Each step is a command that a user would type. The demo prints the commands as it runs them.
"""

from __future__ import annotations

import csv
import shlex
import subprocess
import sys
import time
from pathlib import Path

import fire
import nibabel as nib
import numpy as np

from dbisl.utils import case_name

ROOT = Path(__file__).resolve().parents[1]
TRAINING = ["configs/train.json", "configs/datasets/demo.yaml"]


def run_demo(
    output_dir: str = "demo",
    epochs: int | None = None,
    iterations_per_epoch: int | None = None,
    min_dice: float = 0.0,
) -> None:
    """Run the demo.

    Args:
        output_dir: folder for data, weights and results; it is made when it is missing.
        epochs: number of epochs; by default the number in ``configs/datasets/demo.yaml``.
        iterations_per_epoch: number of iterations per epoch; by default the number in ``configs/datasets/demo.yaml``.
        min_dice: least validation Dice (mean of the two parts); with a lower one the demo ends with an error.

    Raises:
        SystemExit: when a step fails, or the validation Dice is below ``min_dice``.
    """
    started = time.perf_counter()
    folder = Path(output_dir).resolve()
    data, models, output = folder / "data", folder / "models", folder / "output"
    places = {"dataset_dir": data, "output_dir": output, "ckpt_dir": models}
    lengths = {"epochs": epochs, "iterations_per_epoch": iterations_per_epoch}
    lengths = {name: length for name, length in lengths.items() if length is not None}

    _run_python(ROOT, "scripts/make_demo_data.py", output_dir=data)
    _run_bundle("training", TRAINING, **places, **lengths)
    _run_bundle("evaluating", [*TRAINING, "configs/evaluate.json"], **places)
    segmentations = folder / "segmentations"
    weights = models / "model.pt"
    unseen = data / "unseen"
    _run_bundle(
        "inference",
        ["configs/inference.json"],
        dataset_dir=unseen / "images",
        output_dir=segmentations,
        ckpt_path=weights,
    )

    with (output / "summary.csv").open(newline="") as file:
        summary = list(csv.DictReader(file))
    print("\nValidation, after training on 4 labeled and 20 unlabeled scans:")
    print(_table(summary))
    print(f"\nUnseen scans, mean Dice of the two parts: {_unseen_dice(segmentations, unseen / 'labels'):.3f}")
    print(f"\nPictures:      {output / 'previews'}")
    print(f"Segmentations: {segmentations}")
    print(f"Weights:       {weights}")
    print(f"Curves:        tensorboard --logdir {output / 'tensorboard'}")
    print(f"\nThe demo took {(time.perf_counter() - started) / 60:.1f} minutes.")
    dice = next(float(row["mean"]) for row in summary if (row["class_name"], row["metric"]) == ("mean", "dice"))
    if dice < min_dice:
        sys.exit(f"The validation Dice is {dice:.3f}: expected at least {min_dice}.")


def _run_bundle(run_id: str, config_files: list[str], **overrides: object) -> None:
    """Run a command of the bundle, with config files one over the other and config keys that override them."""
    files = config_files[0] if len(config_files) == 1 else "[" + ",".join(f"'{file}'" for file in config_files) + "]"
    _run_python(ROOT / "bundle", "-m", "monai.bundle", "run", run_id, config_file=files, **overrides)


def _run_python(folder: Path, *command: str, **options: object) -> None:
    """Print a command of Python and run it in a folder; end with its exit code when it fails."""
    arguments = [*command, *(text for name, value in options.items() for text in (f"--{name}", str(value)))]
    print(f"\n$ cd {folder} && python {shlex.join(arguments)}", flush=True)
    finished = subprocess.run([sys.executable, *arguments], cwd=folder, check=False)
    if finished.returncode != 0:
        sys.exit(finished.returncode)


def _table(summary: list[dict[str, str]]) -> str:
    """Return the Dice and the distances as a text table, one line per prediction and class."""
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for row in summary:
        cell = f"{float(row['mean']):.3f} ± {float(row['std']):.3f}" if row["mean"] else "undefined"
        line = lines.setdefault((row["task"], row["class_name"]), {"false_negative": row["false_negative"]})
        line[row["metric"]] = cell
    table = [f"{'prediction':14}{'class':18}{'Dice':18}{'95HD (mm)':18}false negatives"]
    for (task, name), cells in lines.items():
        table.append(f"{task:14}{name:18}{cells['dice']:18}{cells['hd95_mm']:18}{cells['false_negative']}")
    return "\n".join(table)


def _unseen_dice(segmentations: Path, labels: Path) -> float:
    """Return the mean Dice of the segmentations over all scans and foreground classes."""
    scores = []
    for path in sorted(labels.glob("*.nii.gz")):
        truth = np.asarray(nib.nifti1.load(path).dataobj)
        predicted = np.asarray(nib.nifti1.load(segmentations / f"{case_name(path)}_seg.nii.gz").dataobj)
        for index in range(1, int(truth.max()) + 1):
            overlap = np.count_nonzero((truth == index) & (predicted == index))
            scores.append(2 * overlap / (np.count_nonzero(truth == index) + np.count_nonzero(predicted == index)))
    return float(np.mean(scores))


if __name__ == "__main__":
    fire.Fire(run_demo)
