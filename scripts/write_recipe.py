"""Write the record of weights that were trained before weights had one.

    python scripts/write_recipe.py bundle/models/model.pt --dataset_dir "$DATA" --num_labeled 8 --version 0.5.0

writes ``bundle/models/model.json``: the recipe of the training's config, and what its scans were like. A training
writes this file by itself.
"""

from __future__ import annotations

import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import fire
from monai.bundle import ConfigParser
from monai.utils import ensure_tuple

from dbisl.data import describe_scans
from dbisl.handlers import make_record
from dbisl.networks import check_checkpoint
from dbisl.utils import atomic_path
from dbisl.utils.recipe import record_path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts import each other from the repository's root
from scripts.format_json import format_json

BUNDLE = Path(__file__).resolve().parents[1] / "bundle"


def write_recipe(
    weights: str,
    dataset_dir: str | None = None,
    config_file: str | list[str] = str(BUNDLE / "configs" / "train.json"),
    version: str | None = None,
    score: float | None = None,
    date: str | None = None,
    **overrides: Any,
) -> Path:
    """Write the record of weights.

    Args:
        weights: the file of the weights.
        dataset_dir: the data set that they were trained on; None: the record says nothing of the scans.
        config_file: the configs of the training, as ``--config_file`` takes them.
        version: version of the bundle that trained them; None: the present one.
        score: their score on the validation scans; None: not known.
        date: when they were trained, such as ``2026-11-24`` (UTC); None: the date of the file.
        overrides: other keys of the training, such as ``num_labeled``.

    Returns:
        The path of the record.

    Raises:
        InputError: when the weights are not those of the config's network, or the data set cannot be used.
    """
    config = ConfigParser()
    config.read_config(list(ensure_tuple(config_file)))
    config.update({**overrides, "bundle_root": str(BUNDLE), "dataset_dir": dataset_dir, "device": "cpu"})
    check_checkpoint(weights, config.get_parsed_content("network_def"))
    recipe = config.get_parsed_content("recipe")
    recipe = {**recipe, "version": version or recipe["version"]}
    trained_on = []
    if dataset_dir is not None:
        cases = config.get_parsed_content("cases")
        trained_on = [Path(case["image"]).name for case in cases.labeled]
        recipe["scans"] = describe_scans(
            labeled=cases.labeled,
            unlabeled=cases.unlabeled,
            spatial_dims=len(recipe["patch_size"]),
            in_channels=recipe["in_channels"],
        )
    when = datetime.fromisoformat(str(date)) if date else datetime.fromtimestamp(Path(weights).stat().st_mtime)
    when = when.replace(tzinfo=timezone.utc) if date else when.astimezone(timezone.utc)
    path = record_path(weights)
    with atomic_path(path) as temporary:
        record = make_record(Path(weights), score, trained_on, recipe, when)
        temporary.write_text(format_json(record), encoding="utf-8")
    print(f"{path}: classes {', '.join(recipe['class_names'])}; {len(trained_on)} labeled scans")
    return path


if __name__ == "__main__":
    fire.Fire(write_recipe)
