"""What MONAI's tools look up by name."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from monai.bundle import ConfigWorkflow

import dbisl
from scripts.format_json import format_json


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
    multiple = 2 ** (train["levels"] - 1)
    # Of a single voxel, in the deepest map, instance normalisation can make nothing: twice as much, then.
    assert data_format["inputs"]["image"]["spatial_shape"] == [f"{2 * multiple}*n"] * 3
    assert all(size % multiple == 0 for size in train["patch_size"])


def test_locked_packages_are_those_of_the_metadata(root: Path) -> None:
    lines = (root / "requirements.lock").read_text().splitlines()
    locked = dict(line.split(";")[0].strip().lower().split("==") for line in lines if "==" in line)
    metadata = json.loads((root / "bundle/configs/metadata.json").read_text())
    named = {"monai": metadata["monai_version"], "torch": metadata["pytorch_version"]}
    named |= {"numpy": metadata["numpy_version"], **metadata["required_packages_version"]}
    assert named == {name: locked[name] for name in named}


@pytest.fixture
def schema(shared_data: Path) -> Path:
    schemas = list((shared_data.parent / "schema").glob("meta_schema_*.json"))
    if not schemas:
        pytest.skip("the model zoo's schema file is not here")
    return schemas[0]


@pytest.mark.realdata
def test_metadata_is_valid_against_the_schema(root: Path, schema: Path) -> None:
    metadata = json.loads((root / "bundle/configs/metadata.json").read_text())
    assert Path(metadata["schema"]).name == schema.name
    validator = jsonschema.Draft201909Validator(json.loads(schema.read_text()))
    assert [error.message for error in validator.iter_errors(metadata)] == []


@pytest.mark.realdata
def test_metadata_is_verified_by_monais_command(root: Path, schema: Path, tmp_path: Path) -> None:
    shutil.copy(schema, tmp_path / "schema.json")  # MONAI downloads it only where it is not there
    command = [sys.executable, "-m", "monai.bundle", "verify_metadata", "--meta_file", "configs/metadata.json"]
    command += ["--filepath", str(tmp_path / "schema.json")]
    done = subprocess.run(command, cwd=root / "bundle", capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 and "metadata is verified with no error" in done.stdout + done.stderr, done.stderr


def test_versions_and_changelog_have_the_zoos_form(root: Path) -> None:
    metadata = json.loads((root / "bundle/configs/metadata.json").read_text())
    changelog = metadata["changelog"]
    versions = [tuple(map(int, version.split("."))) for version in changelog]
    assert versions == sorted(versions, reverse=True) and next(iter(changelog)) == metadata["version"]
    assert all(len(line) <= 80 and ";" not in line and line[0].isupper() for line in changelog.values())
    required = metadata["required_packages_version"].values()
    for version in (*changelog, *(metadata[f"{name}_version"] for name in ("monai", "pytorch", "numpy")), *required):
        assert re.fullmatch(r"\d+\.\d+\.\d+", version), version
    assert metadata["version"] == dbisl.__version__


def test_files_and_sections_that_the_zoo_asks_for(root: Path) -> None:
    bundle = root / "bundle"
    assert (bundle / "LICENSE").read_text() == (root / "LICENSE").read_text()
    assert "CC-BY-SA 4.0" in (bundle / "docs/data_license.txt").read_text()
    headings = re.findall(r"^#+ (.+)$", (bundle / "docs/README.md").read_text(), re.MULTILINE)
    wanted = ["Authors", "Tags", "Model Description", "Data", "Preprocessing", "Performance", "Additional Usage Steps"]
    wanted += ["System Configuration", "Limitations", "Citation", "References"]
    assert [heading for heading in headings if heading in wanted] == wanted


def test_configs_are_formatted_and_hold_no_personal_path(root: Path) -> None:
    for path in (root / "bundle").rglob("*.json"):
        text = path.read_text()
        assert text == format_json(json.loads(text)), f"{path}: run make format"
    for path in (
        *(root / "bundle").rglob("*.json"),
        *(root / "bundle").rglob("*.yaml"),
        *(root / "bundle").rglob("*.md"),
    ):
        assert not re.search(r"/(home|root|Users|tmp|work)/", path.read_text()), path


def test_no_link_is_committed(root: Path) -> None:
    """A link leads elsewhere on another machine."""
    listed = subprocess.run(["git", "ls-files", "--stage"], cwd=root, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("this is no git checkout")
    assert [line for line in listed.stdout.splitlines() if line.startswith("120000")] == []
