"""Measure the memory and the time in which the bundle segments one large scan.

    python scripts/benchmark_memory.py --shape "[512,512,600]" --overlap 0.0

makes a synthetic scan (a body with noise in air, seed 0), segments it in a process of its own by the bundle's inference
config and weights, and prints a Markdown table: the peak of the process's resident memory, everything included.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import fire
import nibabel as nib
import numpy as np

BUNDLE = Path(__file__).resolve().parent.parent / "bundle"


def benchmark(
    shape: Sequence[int] = (512, 512, 600), spacing: Sequence[float] = (0.7, 0.7, 1.0), overlap: float = 0.5
) -> None:
    """Print the table.

    Args:
        shape: voxels of the scan along its three axes.
        spacing: millimetres of a voxel.
        overlap: of neighbouring windows, at least.

    Raises:
        SystemExit: when inference fails, with the last line of its output.
    """
    with tempfile.TemporaryDirectory() as folder:
        scan = Path(folder) / "scan.nii.gz"
        nib.save(nib.nifti1.Nifti1Image(synthetic_scan(shape), np.diag([*spacing, 1.0])), scan)
        command = [sys.executable, "-m", "monai.bundle", "run", "inference", "--config_file", "configs/inference.json"]
        command += ["--dataset_dir", str(scan), "--output_dir", folder, "--overlap", str(overlap)]
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        started = time.perf_counter()
        done = subprocess.run(
            command, cwd=BUNDLE, env={**os.environ, "PYTHONPATH": str(BUNDLE)}, capture_output=True, text=True
        )
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        if done.returncode != 0:
            raise SystemExit(f"inference failed: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
        if peak <= before:
            raise SystemExit("an earlier process of this one was larger: expected to be started on its own.")
        segmented = nib.nifti1.load(Path(folder) / "scan_seg.nii.gz").shape
    print("| voxels | spacing (mm) | overlap | peak memory (GB) | time (min) |")
    print("| --- | --- | --- | --- | --- |")
    size, voxel = (" x ".join(map(str, values)) for values in (segmented, spacing))
    print(f"| {size} | {voxel} | {overlap} | {peak * 1024 / 1e9:.1f} | {seconds / 60:.1f} |")


def synthetic_scan(shape: Sequence[int]) -> np.ndarray:
    """A scan like a CT's, int16: a body of elliptic section with noise in it, and air of one value around."""
    random = np.random.default_rng(0)
    x, y = np.meshgrid(*[np.linspace(-1, 1, size) for size in shape[:2]], indexing="ij")
    body = (x / 0.8) ** 2 + (y / 0.6) ** 2 < 1
    scan = np.full(shape, -1000, np.int16)
    for depth in range(shape[2]):
        organs = 150 * np.sin(9 * x + depth / 40) * np.sin(7 * y - depth / 60)
        scan[body, depth] = (organs + random.normal(0, 30, body.shape))[body]
    return scan


if __name__ == "__main__":
    fire.Fire(benchmark)
