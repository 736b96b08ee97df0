"""Measure whether the uncertainty means something, on the validation scans of a data set.

    python scripts/benchmark_uncertainty.py --dataset_dir DATA/hippocampus --weights bundle/models/model.pt

prints a Markdown table of four uncertainties: the entropy of the fused probabilities, the part of it that comes from
the two tasks' disagreement (Jensen-Shannon), and the entropy of each task alone. *Spearman*: rank correlation over the
scans of the score (the map's sum over the number of foreground voxels in the answer, as in ``report.csv``) with the
Dice: -1 is best. *AUROC*: how well the map tells wrong voxels from right ones, over all voxels and over those near the
structures.
*ECE*: expected calibration error of the probabilities that the entropy is of, near the structures.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import fire
import numpy as np
import torch
from monai.bundle import ConfigParser
from scipy.ndimage import binary_dilation
from scipy.stats import rankdata, spearmanr

from dbisl.bridge import normalised_entropy
from dbisl.data import find_cases
from dbisl.transforms import FuseTasksd

BUNDLE = Path(__file__).resolve().parent.parent / "bundle"
MAPS = ("fused entropy", "disagreement", "entropy of the segmentation", "entropy of the regression")
MARGIN = 5
"""Voxels around the foreground of answer and truth that count as near the structures."""
BINS = 15


def benchmark(
    dataset_dir: str,
    weights: str,
    config_file: str | Sequence[str] = (),
    output: str | None = None,
    device: str = "cpu",
) -> None:
    """Print the table.

    Args:
        dataset_dir: data set whose validation scans count.
        weights: of a dual-task network.
        config_file: override files after train.json.
        output: JSON file for the same figures, and for those of each scan.
        device: where the network runs.
    """
    config = ConfigParser()
    files = [config_file] if isinstance(config_file, str) else list(config_file)
    config.read_config([str(BUNDLE / "configs" / "train.json"), *files])
    config.update({"device": device, "bundle_root": str(BUNDLE), "dataset_dir": dataset_dir})
    classes = config.get_parsed_content("out_channels")
    network = config.get_parsed_content("network").eval()
    network.load_state_dict(torch.load(weights, map_location=device, weights_only=True))
    prepare = config.get_parsed_content("validate#preprocessing")
    inferer = config.get_parsed_content("validate#inferer")
    fuse = FuseTasksd("pred", num_classes=classes, maps=True)

    scans = []
    for case in find_cases(dataset_dir).validation:
        item = prepare(case)
        with torch.no_grad():
            pred = inferer(item["image"].as_tensor()[None].to(device), network)[0].cpu()
        scans.append(measure(fuse({"pred": pred}), item["label"].as_tensor()[0].long()))
    table = summarise(scans)
    print(f"{len(scans)} validation scans of {Path(dataset_dir).name}")
    print("\n| | Spearman with Dice | AUROC, all voxels | AUROC, near | ECE, near |\n| --- | --- | --- | --- | --- |")
    for name, row in table.items():
        print(f"| {name} | " + " | ".join("-" if value is None else f"{value:.3f}" for value in row.values()) + " |")
    if output is not None:
        Path(output).write_text(json.dumps({"table": table, "scans": scans}, indent=4) + "\n")


def measure(answer: Mapping[Hashable, Any], truth: torch.Tensor) -> dict[str, dict[str, float]]:
    """The figures of one scan, by map.

    Args:
        answer: what ``FuseTasksd`` with ``maps`` gives, under the key ``pred``.
        truth: class indices, ``*spatial``.
    """
    fused, p, p_r = (answer[key] for key in ("pred", "pred_segmentation", "pred_regression"))
    classes = fused.argmax(dim=0)
    wrong = (classes != truth).numpy()
    near = binary_dilation(((classes > 0) | (truth > 0)).numpy(), iterations=MARGIN)
    foreground = max(int((classes > 0).sum()), 1)
    pairs = [(classes == index, truth == index) for index in range(1, len(fused))]
    dice = [2 * int((a & t).sum()) / int(a.sum() + t.sum()) for a, t in pairs if a.any() or t.any()]
    maps = {
        "fused entropy": (normalised_entropy(fused[None])[0, 0], fused),
        "disagreement": (answer["pred_uncertainty"][0], None),
        "entropy of the segmentation": (normalised_entropy(p[None])[0, 0], p),
        "entropy of the regression": (normalised_entropy(p_r[None])[0, 0], p_r),
    }
    figures = {}
    for name, (uncertainty, probabilities) in maps.items():
        values = uncertainty.numpy()
        figures[name] = {
            "dice": float(np.mean(dice)) if dice else 1.0,  # nothing there, and nothing found
            "score": float(values.sum()) / foreground,
            "auroc": auroc(values, wrong),
            "auroc_near": auroc(values[near], wrong[near]),
        }
        if probabilities is not None:
            sure, answers = probabilities.max(dim=0)
            figures[name]["ece"] = calibration_error(sure.numpy()[near], (answers == truth).numpy()[near])
    return figures


def auroc(values: np.ndarray, positive: np.ndarray) -> float:
    """Probability that a positive has a higher value than a negative; ties count half. NaN where there is one kind."""
    positives = int(positive.sum())
    negatives = positive.size - positives
    if positives == 0 or negatives == 0:
        return float("nan")
    ranks = rankdata(values, axis=None).reshape(values.shape)
    return float((ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Mean distance of confidence and accuracy in bins of equal width (Guo et al. 2017); NaN of no voxels."""
    if confidence.size == 0:
        return float("nan")
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    sizes = np.bincount(bins, minlength=BINS)
    gaps = np.abs(np.bincount(bins, confidence, BINS) - np.bincount(bins, right, BINS))
    return float(gaps.sum() / sizes.sum())


def summarise(scans: Sequence[dict[str, dict[str, float]]]) -> dict[str, dict[str, float | None]]:
    """Correlation over the scans, and means of the other figures over those scans where they are defined."""
    table: dict[str, dict[str, float | None]] = {}
    for name in MAPS:
        rows = [scan[name] for scan in scans]
        correlation = spearmanr([row["score"] for row in rows], [row["dice"] for row in rows]).statistic
        table[name] = {
            "spearman": float(correlation),
            "auroc": float(np.nanmean([row["auroc"] for row in rows])),
            "auroc_near": float(np.nanmean([row["auroc_near"] for row in rows])),
            "ece": float(np.nanmean([row["ece"] for row in rows])) if "ece" in rows[0] else None,
        }
    return table


if __name__ == "__main__":
    fire.Fire(benchmark)
