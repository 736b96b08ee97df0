"""The weights that ship: small, plain, of the default network, and as good on validation scans as the metadata says."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

from tests.bundle.commands import Run


def test_weights_are_a_plain_state_dict_of_the_default_network(root: Path) -> None:
    path = root / "bundle" / "models" / "model.pt"
    assert path.stat().st_size <= 25e6
    weights = torch.load(path, weights_only=True)
    assert all(isinstance(tensor, torch.Tensor) for tensor in weights.values())
    for name in ("train", "inference"):
        parser = ConfigParser()
        parser.read_config(root / "bundle" / "configs" / f"{name}.json")
        parser.get_parsed_content("network_def").load_state_dict(weights)


@pytest.mark.realdata
def test_weights_reach_the_dice_of_the_metadata(root: Path, shared_data: Path, tmp_path: Path, run_bundle: Run) -> None:
    done = run_bundle(
        "evaluating",
        ["configs/train.json", "configs/evaluate.json"],
        dataset_dir=shared_data / "hippocampus",
        output_dir=tmp_path / "out",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with (tmp_path / "out" / "summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    chosen = {"task": "fused", "class_name": "mean", "metric": "dice"}
    (dice,) = [float(row["mean"]) for row in rows if chosen.items() <= row.items()]
    metadata = json.loads((root / "bundle" / "configs" / "metadata.json").read_text())
    # bfloat16 rounds otherwise on other processors
    assert metadata["eval_metrics"]["mean_dice"] == pytest.approx(dice, abs=0.002)
