"""The record of weights that a training without records made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dbisl.handlers import ModelVersions
from dbisl.networks import DualTaskVNet
from dbisl.utils import InputError
from scripts.make_demo_data import make_demo_data
from scripts.write_recipe import write_recipe

OPTIONS = {"features": 4, "class_names": ["background", "left", "right"]}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.save(DualTaskVNet(out_channels=3, features=4, levels=4).state_dict(), tmp_path / "model.pt")
    return tmp_path / "model.pt"


def test_the_record_is_that_of_the_weights(tmp_path: Path, weights: Path) -> None:
    make_demo_data(str(tmp_path / "data"), num_labeled=2, num_unlabeled=1, num_validation=1)
    known = {"version": "0.5.0", "score": 0.8, "date": "2026-11-24"}
    write_recipe(str(weights), str(tmp_path / "data"), **known, num_labeled=1, **OPTIONS)
    record = ModelVersions(tmp_path).record()
    recipe = record["recipe"]
    assert record["score"] == 0.8 and record["date"].startswith("2026-11-24") and len(record["trained_on"]) == 1
    assert recipe["version"] == "0.5.0" and recipe["class_names"] == OPTIONS["class_names"]
    assert (len(recipe["scans"]["labeled"]), len(recipe["scans"]["unlabeled"])) == (1, 2)
    assert str(tmp_path) not in json.dumps(record)


def test_what_is_not_known_is_left_out(tmp_path: Path, weights: Path) -> None:
    write_recipe(str(weights), **OPTIONS)
    record = ModelVersions(tmp_path).record()
    assert record["score"] is None and record["trained_on"] == [] and "scans" not in record["recipe"]


def test_weights_of_another_network_are_refused(weights: Path) -> None:
    with pytest.raises(InputError, match="holds the weights of another network"):
        write_recipe(str(weights))
    assert not weights.with_suffix(".json").exists()
