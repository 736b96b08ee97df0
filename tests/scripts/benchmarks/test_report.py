"""The report of a comparison: its statistics against scipy's, and what it reads from a training's log."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import bootstrap

from scripts.benchmarks.report import case_means, foreground_ratio, mean_and_deviation, paired_difference


def test_interval_agrees_with_a_bootstrap_over_the_cases() -> None:
    random = np.random.default_rng(0)
    names = [f"case {index}" for index in range(40)]
    theirs = {seed: dict(zip(names, random.normal(0.8, 0.05, 40), strict=True)) for seed in (0, 1)}
    gains = random.normal(0.02, 0.03, (2, 40))
    ours = {seed: {n: v + g for (n, v), g in zip(theirs[seed].items(), gains[seed], strict=True)} for seed in (0, 1)}
    ours[2] = theirs[0]  # a seed that only one of them has does not count
    difference = paired_difference(ours, theirs)
    assert difference is not None
    expected = bootstrap((gains.mean(axis=0),), np.mean, method="percentile", n_resamples=20_000, rng=random)
    np.testing.assert_allclose(difference[0], gains.mean(), rtol=1e-9)
    np.testing.assert_allclose(difference[1:], expected.confidence_interval, atol=5e-4)
    assert paired_difference({0: {"a": 1.0}}, {1: {"a": 1.0}}) is None


def test_foreground_ratio_is_of_the_last_epoch(tmp_path: Path) -> None:
    line = "2026-11-23 - INFO - epoch {} of 3: loss 0.412, validation Dice 0.843, best so far, {}4 min left\n"
    foreground = "unlabeled foreground {}% of the labels', "
    log = tmp_path / "training.log"
    log.write_text(line.format(1, foreground.format("0.3")) + line.format(3, foreground.format("75.0")))
    assert foreground_ratio(log) == pytest.approx(0.75)
    log.write_text(line.format(1, foreground.format("75.0")) + line.format(3, ""))
    assert foreground_ratio(log) is None


def test_mean_over_the_classes_of_a_case_leaves_out_undefined_values() -> None:
    rows = [
        {"case": "a", "hd95_mm": "1.0"},
        {"case": "a", "hd95_mm": "3.0"},
        {"case": "b", "hd95_mm": ""},
        {"case": "b", "hd95_mm": "5.0"},
        {"case": "c", "hd95_mm": ""},
    ]
    assert case_means(rows, "hd95_mm") == {"a": 2.0, "b": 5.0}


def test_deviation_needs_two_values() -> None:
    assert mean_and_deviation([1.0, 3.0]) == "2.00 ± 1.41"
    assert mean_and_deviation([1.0]) == "1.00"
    assert mean_and_deviation([]) == "undefined"
