"""The recipe of trained weights: what they segment, and how a scan must be prepared for them.

Beside ``model.pt`` stands ``model.json``, its record, and in it the recipe. :func:`describe_recipe` makes the recipe of
a config, :func:`read_recipe` reads that of weights, and :func:`check_recipe` compares the two.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import InvertibleTransform, LoadImaged, Transform
from torch import nn

from dbisl import __version__
from dbisl.utils.errors import InputError, raise_if_any

logger = logging.getLogger(__name__)

COMPARED = ("class_names", "in_channels", "spacing", "sdm_band", "sdm_slope")
"""Keys of the configs that must be as in training. The network, the orientation and the intensities must be, too."""

NOT_COMPARED = ("in_channels", "out_channels", "dropout", "dropout_prob")
"""Arguments of a network that other keys decide, or that do not change what a trained network answers."""

NO_PARAMETERS = {"self", "keys", "allow_missing_keys", "dtype"}
"""Arguments of a transform that do not change the intensities."""

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""The file of some weights, or a list with a file for each member of an ensemble."""


def sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's bytes, as hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def record_path(weights: str | os.PathLike[str]) -> Path:
    """Return the path of the record of weights: beside them, with the extension ``.json``."""
    return Path(weights).with_suffix(".json")


def next_record_path(weights: str | os.PathLike[str]) -> Path:
    """Return the path of the record of weights that are about to replace these."""
    return Path(weights).with_suffix(".next.json")


def read_record(weights: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Return the record of weights.

    Args:
        weights: the file of the weights.

    Returns:
        The content of the JSON file beside them, or of the one for weights that come next, as their SHA-256 says; None
        if neither describes these weights.

    Raises:
        InputError: if that file is not JSON.
    """
    paths = [path for path in (record_path(weights), next_record_path(weights)) if path.is_file()]
    if not (os.path.isfile(weights) and paths):
        return None
    digest = sha256(weights)
    for path in paths:
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise InputError(f"{path} cannot be read: expected the record of {weights} in JSON, or no file.") from None
        if isinstance(record, dict) and record.get("sha256") == digest:
            return record
    return None


def read_recipe(path: Paths, otherwise: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe of weights, for a config that takes its keys from there.

    Args:
        path: the file of the weights; of a list, the first counts.
        otherwise: the values of the keys for weights without a recipe. A recipe that lacks some of them, as one of
            another version may, gets these values too.

    Raises:
        InputError: if the record of the weights is not JSON.
    """
    first = path[0] if isinstance(path, (list, tuple)) and path else path
    return {**otherwise, **(_recipe(first) or {})}


def describe_recipe(
    *, keys: Mapping[str, Any], network: nn.Module, image_transforms: Sequence[Transform]
) -> dict[str, Any]:
    """Return the recipe of a config: what JSON can hold of it.

    Args:
        keys: keys of the config with their values, such as ``class_names`` and ``spacing``.
        network: the network; its attribute ``definition``, if it has one, holds the arguments that shape it.
        image_transforms: what is done to each image before a patch is cropped.

    Returns:
        The keys, and ``version`` (of the bundle), ``network`` (its name and arguments), ``orientation`` (axis codes;
        None where the scans keep theirs) and ``intensity`` (name and parameters of each transform of intensities).
    """
    inner = [getattr(transform, "ornt_transform", None) for transform in image_transforms]
    orientations = [transform.axcodes for transform in inner if transform is not None]
    of_intensity = [one for one in image_transforms if not isinstance(one, (InvertibleTransform, LoadImaged))]
    recipe = {
        "version": __version__,
        **keys,
        "network": {"name": type(network).__name__, **getattr(network, "definition", {})},
        "orientation": orientations[-1] if orientations else None,
        "intensity": [{"name": type(one).__name__, **_parameters(one)} for one in of_intensity],
    }
    return dict(_plain(recipe))


def differences(recipe: Mapping[str, Any], trained: Mapping[str, Any]) -> list[str]:
    """Return what a config does otherwise than the training of weights did.

    What one of the two recipes lacks is not compared.

    Args:
        recipe: the recipe of the config.
        trained: the recipe of the weights.

    Returns:
        The end of a sentence for each difference, such as ``trained with spacing ..., the config has ...: expected
        ...``.
    """
    found = [
        _difference(key, trained[key], recipe[key], f"--{key} {_argument(trained[key])}")
        for key in COMPARED
        if key in trained and key in recipe and trained[key] != recipe[key]
    ]
    found += _network_differences(recipe.get("network", {}), trained.get("network", {}), set(recipe))
    if "orientation" in trained and "orientation" in recipe and trained["orientation"] != recipe["orientation"]:
        expected = "that Orientationd in image_transforms"
        found.append(_difference("orientation", trained["orientation"], recipe["orientation"], expected))
    both = "intensity" in trained and "intensity" in recipe
    if both and not _same_intensity(recipe["intensity"], trained["intensity"]):
        ours, theirs = (_calls(one.get("intensity", [])) for one in (recipe, trained))
        expected = "these image_transforms, as in the config files of the training"
        found.append(f"trained with the intensities of {theirs}, the config has {ours}: expected {expected}")
    return found


def check_recipe(path: Paths, recipe: Mapping[str, Any]) -> None:
    """Refuse a config that is not what weights were trained for. Weights without a recipe give one warning.

    Args:
        path: the file of the weights, or a list of files. A file that does not exist passes:
            :func:`dbisl.networks.check_checkpoint` refuses it.
        recipe: the recipe of the config, from :func:`describe_recipe`.

    Raises:
        InputError: one sentence per difference, one per line.
    """
    problems = []
    for weights in path if isinstance(path, (list, tuple)) else [path]:
        if not isinstance(weights, (str, os.PathLike)) or not os.path.isfile(weights):
            continue
        trained = _recipe(weights)
        if trained is None:
            logger.warning(
                "%s has no recipe (%s): class names, spacing, network and intensities are those of the config",
                weights,
                record_path(weights).name,
            )
        else:
            problems += [f"{weights} was {difference}." for difference in differences(recipe, trained)]
    raise_if_any(problems)


def _recipe(path: Any) -> dict[str, Any] | None:
    """Return the recipe in the record of weights, or None."""
    record = read_record(path) if isinstance(path, (str, os.PathLike)) else None
    return None if record is None else record.get("recipe")


def _parameters(transform: Any) -> dict[str, Any]:
    """Return the parameters of a transform by name, as far as JSON can hold them.

    MONAI's transforms of dictionaries keep their parameters as attributes, or as those of the transform that they wrap.
    """
    parts = [transform, *(part for part in vars(transform).values() if isinstance(part, Transform))]
    names = set(inspect.signature(type(transform).__init__).parameters) - NO_PARAMETERS
    found = {name: getattr(part, name) for name in sorted(names) for part in parts if hasattr(part, name)}
    return {name: _plain(value) for name, value in found.items() if _is_plain(_plain(value))}


def _plain(value: Any) -> Any:
    """Return a value with lists and numbers of Python in the place of tuples, arrays and tensors."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value.tolist() if isinstance(value, (np.ndarray, np.generic, torch.Tensor)) else value


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))


def _network_differences(network: Mapping[str, Any], trained: Mapping[str, Any], keys: set[str]) -> list[str]:
    if not network or not trained:
        return []
    if network["name"] != trained["name"]:
        expected = "its backbone in --config_file, as in training"
        return [_difference("the network", trained["name"], network["name"], expected)]
    differing = [
        name for name in trained if name not in NOT_COMPARED and name in network and network[name] != trained[name]
    ]
    return [
        _difference(
            name,
            trained[name],
            network[name],
            f"--{name if name in keys else f'network_def#{name}'} {_argument(trained[name])}",
        )
        for name in differing
    ]


def _difference(name: str, trained: Any, configured: Any, expected: str) -> str:
    return f"trained with {name} {trained}, the config has {configured}: expected {expected}"


def _argument(value: Any) -> str:
    """Return a value as the command line takes it."""
    return f'"{value}"' if isinstance(value, (list, dict)) else str(value)


def _same_intensity(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether the transforms are the same, in the parameters that both know."""
    return len(ours) == len(theirs) and all(
        all(one[name] == other[name] for name in one.keys() & other.keys())
        for one, other in zip(ours, theirs, strict=True)
    )


def _calls(transforms: Sequence[Mapping[str, Any]]) -> str:
    """Return transforms as calls, without the parameters that are None."""
    texts = []
    for transform in transforms:
        given = [f"{key}={value!r}" for key, value in transform.items() if key != "name" and value is not None]
        texts.append(f"{transform['name']}({', '.join(given)})")
    return ", ".join(texts) or "the scan's own"
