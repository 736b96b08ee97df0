"""The simulated annotator: who is chosen, what is trained on, and going on where it stopped."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from dbisl.engines import ScanScores
from scripts.benchmark import BUNDLE
from scripts.make_demo_data import make_demo_data
from scripts.simulate_annotation import simulate

TINY = {"network_def#features": 4, "epochs": 1, "iterations_per_epoch": 1, "num_workers": 0}


def test_rounds_add_what_the_strategy_chooses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    make_demo_data(str(tmp_path / "data"), num_labeled=4, num_unlabeled=1, num_validation=1, seed=0)
    out = tmp_path / "out"
    options = {"strategies": ["uncertainty", "random"], "seeds": 0, "start": 1, "step": 1, "rounds": 2}
    simulate(str(tmp_path / "data"), str(out), overrides=TINY, **options)

    def labeled(name: str) -> list[str]:
        datalist = json.loads((out / "rounds" / name / "datalist.json").read_text())
        assert len(datalist["labeled"]) + len(datalist["unlabeled"]) == 5 and len(datalist["validation"]) == 1
        chosen = json.loads((out / "rounds" / name / "labeled.json").read_text())
        assert {case["image"] for case in datalist["labeled"]} == set(chosen)
        return list(chosen)

    first, second = labeled("start-0"), labeled("uncertainty-0-1")
    assert len(first) == 1 and second[:1] == first and len(labeled("uncertainty-0-2")) == 3
    assert labeled("random-0-1")[:1] == first
    # The one that was added is the one of which the first model is least sure.
    weights = out / "rounds" / "start-0" / "model_final.pt"
    scores = ScanScores(BUNDLE, weights, overrides={"network_def#features": 4})
    images = [str(tmp_path / "data" / "images" / f"train_0{index}.nii.gz") for index in range(4)]
    left = [image for image in images if image not in first]
    assert second[1] == max(left, key=lambda image: scores(image)["disagreement"])
    table = (out / "table.md").read_text()
    assert "| labels | uncertainty | random |" in table and "\n| 3 | " in table
    with (out / "rounds.csv").open(newline="") as file:
        rounds = [(row["strategy"], row["labels"], row["added"]) for row in csv.DictReader(file)]
    chosen = [Path(image).name for image in labeled("uncertainty-0-2")]
    assert rounds[:3] == [("uncertainty", str(index + 1), chosen[index]) for index in range(3)]
    assert [strategy for strategy, *_ in rounds[3:]] == ["random"] * 3
    assert (out / "rounds.png").read_bytes().startswith(b"\x89PNG")

    # Nothing is trained twice.
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.pt")}
    simulate(str(tmp_path / "data"), str(out), overrides=TINY, **options)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.pt")} == before

    with pytest.raises(SystemExit, match="2 rounds end at 9 labels"):
        simulate(str(tmp_path / "data"), str(out), **{**options, "start": 1, "step": 4})
