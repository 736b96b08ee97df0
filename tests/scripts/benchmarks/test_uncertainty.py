"""The table of uncertainties: its figures against SciPy's, and on made-up predictions whose figures are known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import entropy, mannwhitneyu

from dbisl.networks import DualTaskVNet
from scripts.benchmarks.uncertainty import MAPS, auroc, benchmark, calibration_error, measure
from scripts.make_demo_data import make_demo_data


def test_auroc_is_the_statistic_of_mann_and_whitney() -> None:
    random = np.random.default_rng(0)
    values, positive = random.integers(0, 20, size=(7, 8)).astype(float), random.random((7, 8)) < 0.3
    expected = mannwhitneyu(values[positive], values[~positive]).statistic / (positive.sum() * (~positive).sum())
    assert auroc(values, positive) == pytest.approx(expected)
    assert np.isnan(auroc(values, np.zeros_like(positive)))


def test_calibration_error_of_known_confidences() -> None:
    confidence = np.array([0.9] * 10 + [0.6] * 10)
    right = np.array([True] * 7 + [False] * 3 + [True] * 8 + [False] * 2)  # an accuracy of 0.7 and of 0.8
    assert calibration_error(confidence, right) == pytest.approx((0.2 + 0.2) / 2)
    random = np.random.default_rng(0)
    sure = random.uniform(0.5, 1, size=200_000)
    assert calibration_error(sure, random.random(200_000) < sure) < 0.01


def test_figures_of_a_known_prediction() -> None:
    truth = torch.zeros(12, 12, 12, dtype=torch.long)
    truth[4:8, 4:8, 4:8] = 1
    predicted = truth.clone()
    predicted[7] = 0  # 16 of 64 voxels are false negatives, with an uncertain prediction
    p = torch.full((3, 12, 12, 12), 0.001)
    p.scatter_(0, predicted[None], 0.998)
    uncertain = (predicted != truth)[None].expand(3, -1, -1, -1)
    p = torch.where(uncertain, torch.tensor([0.5, 0.4, 0.1]).view(3, 1, 1, 1), p)
    maps = {"pred": p, "pred_segmentation": p, "pred_regression": p, "pred_uncertainty": torch.zeros(1, 12, 12, 12)}
    figures = measure(maps, truth)["fused entropy"]
    assert figures["dice"] == pytest.approx(2 * 48 / (48 + 64))  # of the only class in the scan
    assert figures["auroc"] == figures["auroc_near"] == 1
    expected = sum(entropy(p.flatten(1).numpy(), base=3, axis=0)) / 48
    assert figures["score"] == pytest.approx(expected, rel=1e-4)
    assert measure(maps, truth)["disagreement"]["auroc"] == 0.5


def test_empty_prediction_of_an_empty_scan_is_right() -> None:
    p = torch.zeros(2, 6, 6, 6)
    p[0] = 1
    maps = {"pred": p, "pred_segmentation": p, "pred_regression": p, "pred_uncertainty": torch.zeros(1, 6, 6, 6)}
    figures = measure(maps, torch.zeros(6, 6, 6, dtype=torch.long))["fused entropy"]
    assert figures["dice"] == 1 and np.isnan(figures["ece"])


def test_table_of_a_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_demo_data(str(tmp_path / "data"), num_labeled=1, num_unlabeled=1, num_validation=3)
    torch.manual_seed(0)
    torch.save(DualTaskVNet(out_channels=3, features=4, levels=4).state_dict(), tmp_path / "model.pt")
    (tmp_path / "small.yaml").write_text("features: 4\namp: false\n")
    benchmark(
        str(tmp_path / "data"),
        str(tmp_path / "model.pt"),
        config_file=str(tmp_path / "small.yaml"),
        output=str(tmp_path / "uncertainty.json"),
    )
    results = json.loads((tmp_path / "uncertainty.json").read_text())
    assert list(results["table"]) == list(MAPS) and len(results["scans"]) == 3
    for name, row in results["table"].items():
        assert -1 <= row["spearman"] <= 1 and 0 <= row["auroc"] <= 1 and 0 <= row["auroc_near"] <= 1
        assert (row["ece"] is None) == (name == "disagreement")
    assert "| fused entropy | " in capsys.readouterr().out
