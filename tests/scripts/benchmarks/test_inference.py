"""The table of sliding windows: the literature's, MONAI's and ours, on one scan and one network."""

from __future__ import annotations

from pathlib import Path

import fire
import nibabel as nib
import pytest
import torch

from dbisl.networks import DualTaskVNet
from scripts.benchmarks.inference import LITERATURE, measure, table
from scripts.make_demo_data import make_demo_data


@pytest.fixture
def arguments(root: Path, tmp_path: Path) -> dict[str, str | list[str]]:
    make_demo_data(str(tmp_path / "data"), num_labeled=1, num_unlabeled=1, num_validation=1)
    torch.manual_seed(0)
    torch.save(DualTaskVNet(out_channels=3, features=4, levels=4).state_dict(), tmp_path / "model.pt")
    (tmp_path / "small.yaml").write_text("features: 4\npatch_size: [16, 16, 16]\ndevice: cpu\n")
    name = next((tmp_path / "data" / "labels").glob("*.nii.gz")).name
    for kind in ("images", "labels"):  # the fewest voxels with which the overlaps differ in their windows
        scan = nib.nifti1.load(tmp_path / "data" / kind / name)
        nib.save(scan.slicer[4:32, 12:40, 4:32], tmp_path / f"{kind}.nii.gz")
    return {
        "image": str(tmp_path / "images.nii.gz"),
        "label": str(tmp_path / "labels.nii.gz"),
        "weights": str(tmp_path / "model.pt"),
        "config_file": [str(root / "bundle" / "configs" / "inference.json"), str(tmp_path / "small.yaml")],
    }


def test_methods_differ_in_their_windows(arguments: dict[str, str]) -> None:
    rows = {row["name"]: row for row in measure(**arguments, stride=(3, 3, 3), repeats=1)}
    assert rows[LITERATURE]["dice_literature"] == 1
    assert rows["literature, bfloat16"]["windows"] == rows[LITERATURE]["windows"]
    ours = [rows[f"DBiSL, bfloat16, overlap {overlap}"] for overlap in (0.25, 0.5, 0.75)]
    assert ours[0]["windows"] < ours[1]["windows"] < ours[2]["windows"] < rows[LITERATURE]["windows"]
    assert all(row["seconds"] > 0 and row["size"] == "28 x 28 x 28" for row in rows.values())


def test_table_as_the_command_prints_it(arguments: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    options = [f"--{name}={value}" for name, value in {**arguments, "stride": [8, 8, 8], "repeats": 1}.items()]
    fire.Fire(measure, command=options, serialize=table)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 6 and lines[0].startswith("| inference | windows | time (s) |")
