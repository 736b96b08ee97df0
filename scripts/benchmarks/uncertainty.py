"""Measure how well the uncertainty predicts errors, on the validation scans of a data set.

    python scripts/benchmarks/uncertainty.py --dataset_dir DATA/hippocampus --weights bundle/models/model.pt

prints a Markdown table of four uncertainty maps: the entropy of the fused probabilities, the part of it that comes from
the disagreement of the two tasks (Jensen-Shannon divergence), and the entropy of each task alone. Its columns:

- *Spearman*: rank correlation, over the scans, of a scan's score with its Dice; -1 is best. The score is the sum of the
  map over the number of predicted foreground voxels, as in ``report.csv``.
- *AUROC*: how well the map separates wrong from right voxels, over all voxels and over the voxels near the structures.
- *ECE*: expected calibration error of the probabilities behind the entropy, over the voxels near the structures.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import fire
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.utils import ensure_tuple
from scipy.ndimage import binary_dilation
from scipy.stats import rankdata, spearmanr

from dbisl.bridge import normalised_entropy
from dbisl.data import find_cases
from dbisl.transforms import FuseTasksd

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # scripts import each other from the repository's root
from scripts.benchmarks.common import BUNDLE, markdown_table, write_json

MAPS = ("fused entropy", "disagreement", "entropy of the segmentation", "entropy of the regression")
MARGIN = 5
"""Distance, in voxels, up to which a voxel is near the structures of the prediction or of the label."""
BINS = 15
"""Bins of the calibration error."""


def benchmark(
    dataset_dir: str,
    weights: str,
    config_file: str | Sequence[str] = (),
    output: str | None = None,
    device: str = "cpu",
) -> None:
    """Print the table.

    Args:
        dataset_dir: data set whose validation scans are measured.
        weights: state dict of a dual-task network.
        config_file: override file or files after ``train.json``.
        output: JSON file for the same figures, and the figures of each scan.
        device: device of the network.
    """
    config = ConfigParser()
    config.read_config([str(BUNDLE / "configs" / "train.json"), *ensure_tuple(config_file)])
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
    header = ["", "Spearman with Dice", "AUROC, all voxels", "AUROC, near", "ECE, near"]
    cells = [
        [name, *("-" if value is None else f"{value:.3f}" for value in row.values())] for name, row in table.items()
    ]
    print(f"\n{markdown_table(header, cells)}")
    if output is not None:
        write_json(Path(output), {"table": table, "scans": scans})


def measure(prediction: Mapping[Hashable, Any], truth: torch.Tensor) -> dict[str, dict[str, float]]:
    """Return the figures of one scan, by uncertainty map.

    Args:
        prediction: the maps that ``FuseTasksd`` gives with ``maps``, for the key ``pred``.
        truth: the label, ``*spatial`` class indices.
    """
    fused, p, p_r = (prediction[key] for key in ("pred", "pred_segmentation", "pred_regression"))
    classes = fused.argmax(dim=0)
    wrong = (classes != truth).numpy()
    near = binary_dilation(((classes > 0) | (truth > 0)).numpy(), iterations=MARGIN)
    foreground = max(int((classes > 0).sum()), 1)
    pairs = [(classes == index, truth == index) for index in range(1, len(fused))]
    dice = [2 * int((ours & true).sum()) / int(ours.sum() + true.sum()) for ours, true in pairs if (ours | true).any()]
    maps = {
        "fused entropy": (normalised_entropy(fused[None])[0, 0], fused),
        "disagreement": (prediction["pred_uncertainty"][0], None),
        "entropy of the segmentation": (normalised_entropy(p[None])[0, 0], p),
        "entropy of the regression": (normalised_entropy(p_r[None])[0, 0], p_r),
    }
    figures = {}
    for name, (uncertainty, probabilities) in maps.items():
        values = uncertainty.numpy()
        figures[name] = {
            "dice": float(np.mean(dice)) if dice else 1.0,  # nothing to find, and nothing found
            "score": float(values.sum()) / foreground,
            "auroc": auroc(values, wrong),
            "auroc_near": auroc(values[near], wrong[near]),
        }
        if probabilities is not None:
            confidence, predicted = probabilities.max(dim=0)
            figures[name]["ece"] = calibration_error(confidence.numpy()[near], (predicted == truth).numpy()[near])
    return figures


def auroc(values: np.ndarray, positive: np.ndarray) -> float:
    """Return the probability that a positive has a higher value than a negative; ties count half.

    Args:
        values: the values.
        positive: which of them are positives, boolean, in the same shape.

    Returns:
        The probability; NaN where there are no positives or no negatives.
    """
    positives = int(positive.sum())
    negatives = positive.size - positives
    if positives == 0 or negatives == 0:
        return float("nan")
    ranks = rankdata(values, axis=None).reshape(values.shape)
    return float((ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Return the mean distance of confidence and accuracy over bins of equal width (Guo et al. 2017).

    Args:
        confidence: probability of the predicted class, one value per voxel.
        right: whether the predicted class is the true one, in the same shape.

    Returns:
        The error, weighted by the voxels of each bin; NaN without voxels.
    """
    if confidence.size == 0:
        return float("nan")
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    sizes = np.bincount(bins, minlength=BINS)
    gaps = np.abs(np.bincount(bins, confidence, BINS) - np.bincount(bins, right, BINS))
    return float(gaps.sum() / sizes.sum())


def summarise(scans: Sequence[dict[str, dict[str, float]]]) -> dict[str, dict[str, float | None]]:
    """Return the correlation over the scans, and the means of the other figures over the scans that define them."""
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
