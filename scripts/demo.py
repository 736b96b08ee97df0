"""DBiSL end to end on synthetic scans: make the data, train, evaluate, segment unseen scans, show the result.

Each step is the command that a user would type; they are printed as they run.
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
        output_dir: where data, weights and results go; made when it is missing.
        epochs: for a shorter or longer training than ``configs/datasets/demo.yaml`` has.
        iterations_per_epoch: likewise.
        min_dice: validation Dice (mean of the two parts) below which the demo counts as failed.
    """
    started = time.perf_counter()
    folder = Path(output_dir).resolve()
    data, models, output = folder / "data", folder / "models", folder / "output"
    places = {"dataset_dir": data, "output_dir": output, "ckpt_dir": models}
    lengths = {"epochs": epochs, "iterations_per_epoch": iterations_per_epoch}
    lengths = {name: length for name, length in lengths.items() if length is not None}

    _run(ROOT, "scripts/make_demo_data.py", output_dir=data)
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
    files = config_files[0] if len(config_files) == 1 else "[" + ",".join(f"'{file}'" for file in config_files) + "]"
    _run(ROOT / "bundle", "-m", "monai.bundle", "run", run_id, config_file=files, **overrides)


def _run(folder: Path, *command: str, **options: object) -> None:
    arguments = [*command, *(text for name, value in options.items() for text in (f"--{name}", str(value)))]
    print(f"\n$ cd {folder} && python {shlex.join(arguments)}", flush=True)
    finished = subprocess.run([sys.executable, *arguments], cwd=folder, check=False)
    if finished.returncode != 0:
        sys.exit(finished.returncode)


def _table(summary: list[dict[str, str]]) -> str:
    """The Dice and the distances of each answer, a line a class."""
    shown: dict[tuple[str, str], dict[str, str]] = {}
    for row in summary:
        cell = f"{float(row['mean']):.3f} ± {float(row['std']):.3f}" if row["mean"] else "undefined"
        shown.setdefault((row["task"], row["class_name"]), {"missed": row["missed"]})[row["metric"]] = cell
    lines = [f"{'answer':14}{'class':18}{'Dice':18}{'95HD (mm)':18}missed"]
    for (task, name), cells in shown.items():
        lines.append(f"{task:14}{name:18}{cells['dice']:18}{cells['hd95_mm']:18}{cells['missed']}")
    return "\n".join(lines)


def _unseen_dice(segmentations: Path, labels: Path) -> float:
    scores = []
    for path in sorted(labels.glob("*.nii.gz")):
        truth = np.asarray(nib.nifti1.load(path).dataobj)
        answer = np.asarray(nib.nifti1.load(segmentations / path.name.replace(".nii.gz", "_seg.nii.gz")).dataobj)
        for index in range(1, int(truth.max()) + 1):
            overlap = np.count_nonzero((truth == index) & (answer == index))
            scores.append(2 * overlap / (np.count_nonzero(truth == index) + np.count_nonzero(answer == index)))
    return float(np.mean(scores))


if __name__ == "__main__":
    fire.Fire(run_demo)
