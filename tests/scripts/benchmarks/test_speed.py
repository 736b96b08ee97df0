"""The tables of speed: every section runs on small shapes and says what it measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from scripts.benchmarks.speed import benchmark
from scripts.benchmarks.steps import Setting
from scripts.make_demo_data import make_demo_data


@pytest.fixture
def setting() -> Setting:
    return Setting("cpu", amp=False, patch_size=(16, 16, 16), batch_size=2, repeats=1)


def test_sections_print_tables_and_write_the_same_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # The section of the loader trains as its config says; an override file keeps that small.
    make_demo_data(str(tmp_path / "data"), num_labeled=2, num_unlabeled=3, num_validation=1)
    (tmp_path / "small.yaml").write_text("features: 4\npatch_size: [24, 24, 24]\n")
    benchmark(
        dataset_dir=str(tmp_path / "data"),
        output=str(tmp_path / "speed.json"),
        device="cpu",
        patch_size=(24, 24, 24),
        batch_size=2,
        repeats=1,
        sections=("bridge", "step", "normalisation", "supervised", "loader"),
        config_file=str(tmp_path / "small.yaml"),
        num_labeled=2,
        iterations=2,
    )
    results = json.loads((tmp_path / "speed.json").read_text())
    assert [row["what"] for row in results["step"]] == ["bare step", "DBiSL, no teacher", "DBiSL (default)"]
    assert results["step"][0]["ratio"] == results["step"][0]["memory ratio"] == 1
    assert all(row["ms"] > 0 for name in ("bridge", "step", "normalisation", "supervised") for row in results[name])
    assert results["loader"][0]["what"] == "preparation of 5 scans (s)"
    printed = capsys.readouterr().out
    for section in ("bridge", "step", "normalisation", "supervised", "loader"):
        assert f"| {section} |" in printed


def test_peak_memory_counts_what_is_alive_at_once(setting: Setting) -> None:
    def run() -> None:
        for _ in range(3):  # one tensor after another
            torch.ones(2**20, dtype=torch.uint8).max()

    assert 2**20 <= setting.peak_memory(run) < 2**20 + 2**16


def test_unknown_section() -> None:
    with pytest.raises(SystemExit, match=r"sections has \['nothing'\]: expected some of"):
        benchmark(sections=("nothing",))
