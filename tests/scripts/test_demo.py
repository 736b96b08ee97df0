"""The demo, shortened to one step of training."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_demo_runs_to_its_table_and_fails_below_the_dice_asked_for(root: Path, tmp_path: Path) -> None:
    lengths = ["--epochs", "1", "--iterations_per_epoch", "1", "--min_dice", "0.99"]
    done = subprocess.run(
        [sys.executable, "scripts/demo.py", "--output_dir", str(tmp_path / "a demo"), *lengths],
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "expected at least 0.99" in done.stderr
    table = done.stdout.split("Validation, after training")[1]
    assert "95HD (mm)         false negatives\n" in table
    for prediction in ("fused", "segmentation", "regression"):
        assert f"\n{prediction}" in table
    for place in ("segmentations/unseen_00_seg.nii.gz", "models/model.pt"):
        assert (tmp_path / "a demo" / place).is_file()
    assert list((tmp_path / "a demo/output/previews").glob("01_val_*.png"))
