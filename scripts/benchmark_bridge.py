"""Measure the bridge from segmentation to signed distance map: accuracy on real labels, and time.

    python scripts/benchmark_bridge.py --labels DATA/hippocampus/labels

prints a Markdown table: the mean absolute error inside a band of 5 voxels, in voxels of the finest axis, against the
exact distance, with isotropic voxels and with every third slice (1 x 1 x 3); and the median time, forward and backward,
for 4 patches of 40 x 56 x 40 with 3 classes, of all kernels side by side in one run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fire
import nibabel as nib
import numpy as np
import torch
from torch.nn import functional

from dbisl.task_transforms import SegmentationToSDM, signed_distance_map

BAND = 5.0
KERNELS: dict[str, dict[str, Any]] = {
    "gaussian (default)": {"kernel": "gaussian"},
    "gaussian, h=1": {"kernel": "gaussian", "h": 1.0},
    "exponential, h=0.35": {"kernel": "exponential", "h": 0.35},
    "exponential, h=0.7": {"kernel": "exponential", "h": 0.7},
    "exponential, h=1": {"kernel": "exponential", "h": 1.0},
}


def benchmark(labels: str, cases: int = 10, repeats: int = 5) -> None:
    """Print the table.

    Args:
        labels: folder of NIfTI labels.
        cases: how many of them, in the order of their names.
        repeats: timed repetitions of each kernel.
    """
    paths = sorted(Path(labels).glob("*.nii.gz"))[:cases]
    if not paths:
        raise SystemExit(f"{labels} holds no .nii.gz files: expected a folder of labels.")
    times = _times(repeats)
    print(f"{len(paths)} labels of {labels}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("| kernel | error, 1 x 1 x 1 | error, 1 x 1 x 3 | time (ms) |")
    print("| --- | --- | --- | --- |")
    for name, options in KERNELS.items():
        errors = [np.mean([_error(path, spacing, options) for path in paths]) for spacing in ((1, 1, 1), (1, 1, 3))]
        print(f"| {name} | {errors[0]:.3f} | {errors[1]:.3f} | {times[name] * 1000:.0f} |")


def _error(path: Path, spacing: tuple[int, ...], options: dict[str, Any]) -> float:
    label = np.asarray(nib.nifti1.load(path).dataobj).astype(np.int64)
    inside = np.argwhere(label)
    margin = int(BAND) + 2
    low, high = np.maximum(inside.min(axis=0) - margin, 0), inside.max(axis=0) + margin + 1
    label = label[tuple(slice(a, b, step) for a, b, step in zip(low, high, spacing, strict=True))]
    one_hot = functional.one_hot(torch.from_numpy(label)).movedim(-1, 0)
    exact = signed_distance_map(one_hot, BAND, spacing)
    answer = SegmentationToSDM(BAND, spacing, **options)(one_hot[None].float())[0]
    in_band = exact.abs() < 1
    return float((answer - exact).abs()[in_band].mean() * BAND)


def _times(repeats: int) -> dict[str, float]:
    torch.manual_seed(0)
    probabilities = torch.softmax(3 * torch.randn(4, 3, 40, 56, 40), dim=1).requires_grad_()
    bridges = {name: SegmentationToSDM(BAND, (1, 1, 1), **options) for name, options in KERNELS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in bridges}
    for name, bridge in _rounds(bridges, repeats + 1):
        started = time.perf_counter()
        bridge(probabilities).square().sum().backward()
        seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def _rounds(bridges: dict[str, SegmentationToSDM], rounds: int) -> Iterator[tuple[str, SegmentationToSDM]]:
    """All the kernels in turn, again and again: what else the machine does touches each alike. The first warms up."""
    for _ in range(rounds):
        yield from bridges.items()


if __name__ == "__main__":
    fire.Fire(benchmark)
