"""The recipe of weights: what it holds, how it is read, and which configs it refuses."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from monai.transforms import (
    LoadImaged,
    NormalizeIntensityd,
    Orientationd,
    ScaleIntensityRanged,
    ScaleIntensityRangePercentilesd,
    Spacingd,
    Transform,
)
from torch import nn

import dbisl
from dbisl.networks import DualTaskSegResNet, DualTaskVNet
from dbisl.utils import InputError, check_recipe, describe_recipe, read_recipe

KEYS = {"class_names": ["background", "ventricle"], "in_channels": 1, "spacing": [1.5, 1.5, 8.0], "features": 4}


def transforms(*of_intensity: Transform, axcodes: str = "RAS") -> list[Any]:
    keys = "image"
    return [LoadImaged(keys), Orientationd(keys, axcodes, labels=None), Spacingd(keys, pixdim=1.0), *of_intensity]


def make_recipe(network: nn.Module | None = None, image_transforms: list[Any] | None = None) -> dict[str, Any]:
    return describe_recipe(
        keys=KEYS,
        network=network or DualTaskVNet(features=4, levels=3),
        image_transforms=image_transforms or transforms(NormalizeIntensityd("image", channel_wise=True)),
    )


def write_weights(folder: Path, recipe: dict[str, Any] | None, name: str = "model") -> Path:
    """Write a file of weights and its record."""
    weights = folder / f"{name}.pt"
    weights.write_bytes(name.encode())
    record: dict[str, Any] = {"sha256": hashlib.sha256(name.encode()).hexdigest()}
    weights.with_suffix(".json").write_text(json.dumps({**record, **({"recipe": recipe} if recipe else {})}))
    return weights


def test_a_recipe_is_json_and_says_what_the_config_does() -> None:
    ranges = {"a_min": -100, "a_max": 240.0, "b_min": 0.0, "b_max": 1.0, "clip": True}
    network = DualTaskVNet(out_channels=2, features=4, levels=3, strides=[[2, 2, 1], 2], norm="batch")
    recipe = make_recipe(network, transforms(ScaleIntensityRanged("image", **ranges), axcodes="LPS"))
    assert json.loads(json.dumps(recipe)) == recipe
    assert {key: recipe[key] for key in KEYS} == KEYS and recipe["version"] == dbisl.__version__
    assert recipe["orientation"] == "LPS"
    assert recipe["intensity"] == [{"name": "ScaleIntensityRanged", **ranges}]
    expected = {"name": "DualTaskVNet", "features": 4, "levels": 3, "norm": "batch", "strides": [[2, 2, 1], [2, 2, 2]]}
    assert expected.items() <= recipe["network"].items()
    assert "RangePercentilesd" in json.dumps(
        make_recipe(image_transforms=transforms(ScaleIntensityRangePercentilesd("image", 1, 99, 0, 1)))
    )


def test_a_config_takes_its_keys_from_the_recipe(tmp_path: Path) -> None:
    defaults = {"class_names": ["background", "organ"], "overlap": 0.5}
    weights = write_weights(tmp_path, make_recipe())
    recipe = read_recipe(weights, defaults)
    assert recipe["class_names"] == KEYS["class_names"] and recipe["overlap"] == 0.5
    other = write_weights(tmp_path, {**make_recipe(), "class_names": ["background", "other"]}, "other")
    assert read_recipe([other, weights], defaults)["class_names"] == ["background", "other"]
    weights.write_bytes(b"other weights under the same name")
    assert read_recipe(weights, defaults) == defaults
    assert read_recipe(tmp_path / "none.pt", defaults) == defaults


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what the recipe logged; MONAI's readers log, too."""
    return [record.getMessage() for record in caplog.records if record.name == "dbisl.utils.recipe"]


def test_the_same_config_passes_in_silence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    check_recipe(write_weights(tmp_path, make_recipe()), make_recipe())
    trained = make_recipe()
    trained["intensity"][0]["new_parameter"] = 1  # of another version of MONAI
    del trained["orientation"]  # of another version of the bundle
    check_recipe(write_weights(tmp_path, trained), make_recipe(DualTaskVNet(features=4, levels=3, dropout=0.5)))
    check_recipe(tmp_path / "none.pt", make_recipe())
    assert not messages(caplog)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"class_names": ["background", "a"]},
            "class_names ['background', 'ventricle'], the config has ['background', 'a']: "
            "expected --class_names \"['background', 'ventricle']\".",
        ),
        ({"in_channels": 2}, "in_channels 1, the config has 2: expected --in_channels 1."),
        ({"spacing": [1.0, 1.0, 1.0]}, 'the config has [1.0, 1.0, 1.0]: expected --spacing "[1.5, 1.5, 8.0]".'),
        (
            {"orientation": "LPS"},
            "orientation RAS, the config has LPS: expected that Orientationd in image_transforms.",
        ),
        (
            {"intensity": []},
            "the intensities of NormalizeIntensityd(channel_wise=True, nonzero=False), the config has the scan's own: "
            "expected these image_transforms, as in the config files of the training.",
        ),
    ],
)
def test_a_config_that_differs_is_one_sentence(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    weights = write_weights(tmp_path, make_recipe())
    with pytest.raises(InputError) as error:
        check_recipe(weights, {**make_recipe(), **change})
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"{weights} was trained with ") and sentence in line


def test_another_network_has_a_sentence_for_each_argument(tmp_path: Path) -> None:
    weights = write_weights(tmp_path, make_recipe())
    with pytest.raises(InputError) as error:
        check_recipe(weights, make_recipe(DualTaskVNet(features=8, levels=3, norm="batch", kernel_sizes=[1, 3, 3])))
    lines = sorted(line.removeprefix(f"{weights} was trained with ") for line in str(error.value).splitlines())
    assert lines[0] == "features 4, the config has 8: expected --features 4."
    assert lines[1].startswith("kernel_sizes [[3, 3, 3], ") and "--network_def#kernel_sizes" in lines[1]
    assert lines[2] == "norm instance, the config has batch: expected --network_def#norm instance."
    backbone = make_recipe(DualTaskSegResNet(init_filters=8, blocks_down=(1, 1), blocks_up=(1,)))
    with pytest.raises(
        InputError, match="network DualTaskVNet, the config has DualTaskSegResNet: expected its backbone"
    ):
        check_recipe(weights, backbone)


def test_every_difference_and_every_member_of_an_ensemble_has_a_line(tmp_path: Path) -> None:
    trained = make_recipe()
    members = [write_weights(tmp_path, trained, name) for name in ("one", "two")]
    config = copy.deepcopy(trained) | {"in_channels": 2, "spacing": None}
    with pytest.raises(InputError) as error:
        check_recipe(members, config)
    assert len(str(error.value).splitlines()) == 4


def test_weights_without_a_recipe_give_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights = write_weights(tmp_path, None)
    with caplog.at_level(logging.WARNING):
        check_recipe(weights, make_recipe())
    (message,) = messages(caplog)
    assert message.startswith(f"{weights} has no recipe (model.json): class names, spacing, network and intensities")


def test_a_record_that_is_not_json(tmp_path: Path) -> None:
    weights = write_weights(tmp_path, None)
    weights.with_suffix(".json").write_text("{")
    with pytest.raises(InputError, match=r"model\.json cannot be read: expected the record of .*model\.pt in JSON"):
        read_recipe(weights, {})
