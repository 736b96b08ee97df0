"""Measure the memory and the time that the bundle needs to segment one large scan.

    python scripts/benchmarks/memory.py --shape "[512,512,600]" --overlap 0.0

makes a synthetic scan (a body with noise, in air), segments it with the bundle's inference config and weights in a
process of its own, and prints a Markdown table with the peak of that process's resident memory.
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

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # scripts import each other from the repository's root
from scripts.benchmarks.common import BUNDLE, last_line, markdown_table


def benchmark(
    shape: Sequence[int] = (512, 512, 600), spacing: Sequence[float] = (0.7, 0.7, 1.0), overlap: float = 0.5
) -> None:
    """Print the table.

    Args:
        shape: voxels of the scan along its three axes.
        spacing: size of a voxel along the three axes, in millimetres.
        overlap: least overlap of neighbouring windows, as a fraction of a window.

    Raises:
        SystemExit: when inference fails; the message quotes the last line of its output.
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
            raise SystemExit(f"inference failed: {last_line(done.stderr or done.stdout)}")
        if peak <= before:
            raise SystemExit("an earlier subprocess needed more memory: expected this script in a process of its own.")
        segmented = nib.nifti1.load(Path(folder) / "scan_seg.nii.gz").shape
    size, voxel = (" x ".join(map(str, values)) for values in (segmented, spacing))
    header = ["voxels", "spacing (mm)", "overlap", "peak memory (GB)", "time (min)"]
    print(markdown_table(header, [[size, voxel, str(overlap), f"{peak * 1024 / 1e9:.1f}", f"{seconds / 60:.1f}"]]))


def synthetic_scan(shape: Sequence[int]) -> np.ndarray:
    """Return a scan like a CT, int16: an elliptic body with noise, surrounded by air of one value."""
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
