"""What MONAI's tools look up by name."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from monai.bundle import ConfigWorkflow


@pytest.mark.parametrize(
    ("workflow_type", "files"),
    [
        ("train", ["train.json"]),
        ("infer", ["inference.json"]),
    ],
)
def test_every_required_property_is_there(
    root: Path, demo_data: Path, tmp_path: Path, workflow_type: str, files: list[str]
) -> None:
    configs = root / "bundle" / "configs"
    workflow = ConfigWorkflow(
        config_file=[str(configs / file) for file in files],
        meta_file=str(configs / "metadata.json"),
        logging_file=False,
        workflow_type=workflow_type,
        bundle_root=str(root / "bundle"),
        dataset_dir=str(demo_data if workflow_type == "train" else demo_data / "images"),
        output_dir=str(tmp_path),
    )
    workflow.initialize()
    assert workflow.check_properties() == []
    assert len(workflow.train_dataset_data if workflow_type == "train" else workflow.dataset_data) > 0


def test_metadata_agrees_with_the_configs(root: Path) -> None:
    configs = root / "bundle" / "configs"
    metadata, train = (json.loads((configs / f"{name}.json").read_text()) for name in ("metadata", "train"))
    data_format = metadata["network_data_format"]
    assert data_format["inputs"]["image"]["num_channels"] == train["in_channels"]
    assert data_format["outputs"]["pred"]["num_channels"] == len(train["class_names"])
    assert list(data_format["outputs"]["pred"]["channel_def"].values()) == train["class_names"]
    multiple = 2 ** (train["network_def"]["levels"] - 1)
    assert data_format["inputs"]["image"]["spatial_shape"] == [f"{multiple}*n"] * 3
    assert all(size % multiple == 0 for size in train["patch_size"])


def test_locked_packages_are_those_of_the_metadata(root: Path) -> None:
    lines = (root / "requirements.lock").read_text().splitlines()
    locked = dict(line.split(";")[0].strip().lower().split("==") for line in lines if "==" in line)
    metadata = json.loads((root / "bundle/configs/metadata.json").read_text())
    named = {"monai": metadata["monai_version"], "torch": metadata["pytorch_version"]}
    named |= {"numpy": metadata["numpy_version"], **metadata["required_packages_version"]}
    assert named == {name: locked[name] for name in named}


@pytest.mark.realdata
def test_metadata_is_valid_against_the_schema(root: Path, shared_data: Path) -> None:
    schemas = list((shared_data.parent / "schema").glob("meta_schema_*.json"))
    if not schemas:
        pytest.skip("the model zoo's schema file is not here")
    metadata = json.loads((root / "bundle/configs/metadata.json").read_text())
    validator = jsonschema.Draft201909Validator(json.loads(schemas[0].read_text()))
    assert [error.message for error in validator.iter_errors(metadata)] == []
