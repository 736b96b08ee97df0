"""Override files commute: two that may be used together give the same config in both orders."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser

CONFIGS = Path(__file__).resolve().parents[2] / "bundle" / "configs"

TRAINING_KINDS = {
    "method": sorted(CONFIGS.glob("methods/*.yaml")),
    "data set": sorted(CONFIGS.glob("datasets/*.yaml")),
    "backbone": sorted(CONFIGS.glob("backbones/*.yaml")),
    "cache": [CONFIGS / "disk_cache.json"],
    "labels": [CONFIGS / "no_labels.json"],
    "processes": [CONFIGS / "multi_gpu_train.json"],
    "evaluation": [CONFIGS / "evaluate.json"],
}
INFERENCE_KINDS = {
    "data set": sorted(CONFIGS.glob("datasets/*.yaml")),
    "backbone": sorted(CONFIGS.glob("backbones/*.yaml")),
    "maps": [CONFIGS / "maps.json"],
    "network": [CONFIGS / "exported.json"],
}
"""Override files by kind: a run takes at most one of each kind."""

NEVER_TOGETHER = {("multi_gpu_train", "evaluate")}
"""Evaluation runs in one process."""


def pairs_of(kinds: dict[str, list[Path]]) -> list[tuple[Path, Path]]:
    """Every two files of different kinds."""
    groups = itertools.combinations(kinds.values(), 2)
    pairs = [pair for one, other in groups for pair in itertools.product(one, other)]
    return [(one, other) for one, other in pairs if (one.stem, other.stem) not in NEVER_TOGETHER]


def resolved(base: str, *overlays: Path) -> dict[str, Any]:
    """The config as MONAI merges it, with its macros resolved."""
    parser = ConfigParser()
    parser.read_config([CONFIGS / base, *overlays])
    parser.resolve_macro_and_relative_ids()
    return dict(parser.get())


def name(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize(("one", "other"), pairs_of(TRAINING_KINDS), ids=name)
def test_overlays_of_training_commute(one: Path, other: Path) -> None:
    assert resolved("train.json", one, other) == resolved("train.json", other, one)


@pytest.mark.parametrize(("one", "other"), pairs_of(INFERENCE_KINDS), ids=name)
def test_overlays_of_inference_commute(one: Path, other: Path) -> None:
    assert resolved("inference.json", one, other) == resolved("inference.json", other, one)


def test_every_overlay_has_a_kind() -> None:
    with_kind = {path for kinds in (TRAINING_KINDS, INFERENCE_KINDS) for paths in kinds.values() for path in paths}
    complete = {CONFIGS / name for name in ("train.json", "inference.json", "metadata.json")}
    arguments_of_a_command = {CONFIGS / "onnx.yaml"}
    assert {*CONFIGS.rglob("*.json"), *CONFIGS.rglob("*.yaml")} == with_kind | complete | arguments_of_a_command


def ids_in(config: Any) -> list[str]:
    """The keys of the overlays and the references of a config's values, as far as they are text."""
    if isinstance(config, dict):
        return [text for key, value in config.items() for text in (str(key), *ids_in(value))]
    if isinstance(config, list):
        return [text for value in config for text in ids_in(value)]
    return re.findall(r"[@%]([\w#:]+)", config) if isinstance(config, str) else []


@pytest.mark.parametrize("path", sorted([*CONFIGS.rglob("*.json"), *CONFIGS.rglob("*.yaml")]), ids=name)
def test_nothing_refers_to_an_entry_of_a_list_by_its_position(path: Path) -> None:
    if path.name == "metadata.json":
        return
    config = ConfigParser.load_config_file(path)
    assert [text for text in ids_in(config) if re.search(r"(#|::)-?\d+(#|::|$)", text)] == []


def test_disk_cache_keeps_what_other_overlays_say() -> None:
    """The two losses that order caused before: unlabeled scans that came back, and a rank's share that was undone."""
    supervised, cache = CONFIGS / "methods" / "supervised.yaml", CONFIGS / "disk_cache.json"
    assert resolved("train.json", supervised, cache)["unlabeled"]["dataset"]["data"] == []
    ranks = json.loads((CONFIGS / "multi_gpu_train.json").read_text())
    config = resolved("train.json", CONFIGS / "multi_gpu_train.json", cache)
    assert config["validate"]["dataset"]["data"] == ranks["validate#dataset#data"]
