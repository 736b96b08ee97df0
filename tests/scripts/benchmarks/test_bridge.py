"""The table of bridges: the package's default beside the others, against the exact distance of a ball."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.benchmarks.bridge import benchmark
from scripts.benchmarks.candidates import CANDIDATES


def test_table_of_bridges(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    z, y, x = np.ogrid[:16, :16, :16]
    ball = ((z - 7.5) ** 2 + (y - 7.5) ** 2 + (x - 7.5) ** 2 < 16).astype(np.uint8)
    nib.save(nib.Nifti1Image(ball, np.eye(4)), tmp_path / "ball.nii.gz")
    output = tmp_path / "bridge.json"
    benchmark(labels=str(tmp_path), output=str(output), cases=1, repeats=1, patch_size=(16, 16, 16))
    bridges = json.loads(output.read_text())["bridges"]
    assert list(bridges) == list(CANDIDATES)
    default, dense = bridges["gaussian (default)"], bridges["exponential, dense, h=0.35 (paper)"]
    assert default["near"] < dense["near"] and default["far"] < dense["far"] / 2
    assert default["blurred, sharpness 4"] < default["blurred, sharpness 1"]
    assert all(row["time (ms)"] > 0 and row["kept (MB)"] > 0 for row in bridges.values())
    printed = capsys.readouterr().out
    assert all(f"| {name} |" in printed for name in [*CANDIDATES, "network, bfloat16"])


def test_folder_without_labels(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="expected a folder of labels"):
        benchmark(labels=str(tmp_path))
