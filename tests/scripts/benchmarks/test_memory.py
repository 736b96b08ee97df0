"""The measurement of memory, on a small scan."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_row_of_one_inference(root: Path) -> None:
    command = [sys.executable, "scripts/benchmarks/memory.py", "--shape=[48,40,44]", "--overlap=0.25"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    voxels, spacing, overlap, peak, minutes = done.stdout.strip().splitlines()[-1].strip("| ").split(" | ")
    assert (voxels, spacing, overlap) == ("48 x 40 x 44", "0.7 x 0.7 x 1.0", "0.25")
    assert 0.2 < float(peak) < 8 and float(minutes) < 10  # torch and MONAI alone take 0.2 GB
