"""The simulated annotator: which scans it chooses, what it trains on, and how it goes on where it stopped."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigWorkflow
from monai.utils import set_determinism

from dbisl.engines import ScanScores
from scripts.benchmarks.common import BUNDLE
from scripts.make_demo_data import make_demo_data
from scripts.simulate_annotation import simulate

TINY = {"features": 4, "epochs": 1, "iterations_per_epoch": 1, "num_workers": 0}
OPTIONS = {"strategies": ["uncertainty", "random"], "seeds": 0, "start": 1, "step": 1, "rounds": 2, "overrides": TINY}


def run_in_process(run_id: str, files: Sequence[Path], options: Mapping[str, Any], *_: Any) -> None:
    """Run a command of the bundle as ``run_bundle`` does, but in this process, which saves the imports."""
    workflow = ConfigWorkflow(
        config_file=[str(file) for file in files],
        workflow_type="train" if run_id == "training" else "infer",
        run_id=run_id,
        logging_file=False,
        bundle_root=str(BUNDLE),
        **{key: str(value) if isinstance(value, Path) else value for key, value in options.items()},
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder of a finished simulation, ``out``, and of its scans, ``data``."""
    folder = tmp_path_factory.mktemp("simulation")
    make_demo_data(str(folder / "data"), num_labeled=4, num_unlabeled=1, num_validation=1, seed=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        patch.setattr("scripts.simulate_annotation.run_bundle", run_in_process)
        simulate(str(folder / "data"), str(folder / "out"), **OPTIONS)
        yield folder
    set_determinism(None)


def labeled(simulated: Path, name: str) -> list[str]:
    """Return the labeled images of a round, after a check that it trained on them and on all others without labels."""
    folder = simulated / "out" / "rounds" / name
    datalist = json.loads((folder / "datalist.json").read_text())
    assert len(datalist["labeled"]) + len(datalist["unlabeled"]) == 5 and len(datalist["validation"]) == 1
    chosen = json.loads((folder / "labeled.json").read_text())
    assert {case["image"] for case in datalist["labeled"]} == set(chosen)
    return list(chosen)


def test_rounds_add_what_the_strategy_chooses(simulated: Path) -> None:
    first, second = labeled(simulated, "start-0"), labeled(simulated, "uncertainty-0-1")
    assert len(first) == 1 and second[:1] == first and len(labeled(simulated, "uncertainty-0-2")) == 3
    assert labeled(simulated, "random-0-1")[:1] == first
    # The first model is least certain of the scan that was added.
    weights = simulated / "out" / "rounds" / "start-0" / "model_final.pt"
    scores = ScanScores(BUNDLE, weights, overrides={"features": 4})
    images = [str(simulated / "data" / "images" / f"train_0{index}.nii.gz") for index in range(4)]
    candidates = [image for image in images if image not in first]
    assert second[1] == max(candidates, key=lambda image: scores(image)["disagreement"])


def test_rounds_are_reported(simulated: Path) -> None:
    out = simulated / "out"
    table = (out / "table.md").read_text()
    assert "| labels | uncertainty | random |" in table and "\n| 3 | " in table
    with (out / "rounds.csv").open(newline="") as file:
        rounds = [(row["strategy"], row["labels"], row["added"]) for row in csv.DictReader(file)]
    chosen = [Path(image).name for image in labeled(simulated, "uncertainty-0-2")]
    assert rounds[:3] == [("uncertainty", str(index + 1), chosen[index]) for index in range(3)]
    assert [strategy for strategy, *_ in rounds[3:]] == ["random"] * 3
    assert (out / "rounds.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_is_trained_twice(simulated: Path) -> None:
    out = simulated / "out"
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.pt")}
    simulate(str(simulated / "data"), str(out), **OPTIONS)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.pt")} == before


def test_too_many_rounds_are_refused(simulated: Path) -> None:
    with pytest.raises(SystemExit, match="2 rounds end at 9 labels"):
        simulate(str(simulated / "data"), str(simulated / "out"), **{**OPTIONS, "step": 4})
