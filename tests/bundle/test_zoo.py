"""The zip that the model zoo would host: packed, downloaded, loaded and run from elsewhere, twice in one process."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from dbisl.networks import DualTaskVNet
from scripts.package import package


def git(repository: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=Tester", "-c", "user.email=tester@example.org", "-c", "commit.gpgsign=false")
    subprocess.run(["git", "-C", str(repository), *identity, *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def repository(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with this bundle and weights of its shape."""
    folder = tmp_path_factory.mktemp("repository")
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.pt", "*.ts", "*.onnx", "output")
    shutil.copytree(root / "bundle", folder / "bundle", ignore=ignored)
    (folder / "bundle" / "models").mkdir(exist_ok=True)
    torch.manual_seed(0)
    torch.save(DualTaskVNet(out_channels=3, features=16, levels=4).state_dict(), folder / "bundle/models/model.pt")
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "Bundle")
    return folder


@pytest.fixture(scope="module")
def archive(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return package(str(tmp_path_factory.mktemp("dist")), str(repository))


def test_zip_holds_what_is_committed_under_the_bundles_name(repository: Path, archive: Path, tmp_path: Path) -> None:
    version = json.loads((repository / "bundle/configs/metadata.json").read_text())["version"]
    assert archive.name == f"dbisl_v{version}.zip"
    with zipfile.ZipFile(archive) as content:
        names = content.namelist()
        assert {name.split("/")[0] for name in names} == {"dbisl"}
        for name in names:
            assert content.read(name) == (repository / "bundle" / name.removeprefix("dbisl/")).read_bytes()
    assert {
        "dbisl/LICENSE",
        "dbisl/models/model.pt",
        "dbisl/dbisl/networks/vnet.py",
        "dbisl/configs/train.json",
    } <= set(names)
    sums = json.loads(archive.with_suffix(".json").read_text())[archive.stem]
    assert sums["sha256"] == hashlib.sha256(archive.read_bytes()).hexdigest()
    assert package(str(tmp_path), str(repository)).read_bytes() == archive.read_bytes()


def test_changes_and_missing_weights_are_refused(repository: Path, tmp_path: Path) -> None:
    shutil.copytree(repository, tmp_path / "copy")
    (tmp_path / "copy/bundle/docs/README.md").write_text("changed")
    with pytest.raises(SystemExit, match=r"1 uncommitted changes \(M bundle/docs/README.md"):
        package(str(tmp_path), str(tmp_path / "copy"))
    git(tmp_path / "copy", "rm", "--quiet", "bundle/models/model.pt")
    git(tmp_path / "copy", "commit", "--all", "--quiet", "--message", "No weights")
    with pytest.raises(SystemExit, match=r"bundle lacks models/model\.pt"):
        package(str(tmp_path), str(tmp_path / "copy"))
    assert not list(tmp_path.glob("*.zip"))


HIDE = """
import os, sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in str(finder)]
sys.path[:] = [folder for folder in sys.path if not os.path.isdir(os.path.join(folder, "dbisl"))]
"""
"""A ``sitecustomize`` module: the environment as it is where nobody has installed the package."""


@pytest.mark.parametrize("processes", [1, 2])
def test_a_bundle_runs_from_elsewhere_with_nothing_installed(
    archive: Path, demo_data: Path, tmp_path: Path, processes: int
) -> None:
    with zipfile.ZipFile(archive) as content:
        content.extractall(tmp_path / "zoo")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(HIDE)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(tmp_path / "site"),
        "CUDA_VISIBLE_DEVICES": "",
    }

    def call(*command: object) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, *map(str, command)]
        return subprocess.run(
            line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
        )

    assert "No module named 'dbisl'" in call("-c", "import dbisl").stderr
    bundle = tmp_path / "zoo" / "dbisl"
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    small = ["--patch_size", "[24,24,24]", "--epochs", 1, "--iterations_per_epoch", 1, "--ckpt_dir", tmp_path / "ckpt"]
    for run_id, files, data, options in (
        ("training", ["train", "multi_gpu_train"] if torchrun else ["train"], demo_data, small),
        ("evaluating", ["train", "evaluate"], demo_data, []),
        ("inference", ["inference"], demo_data / "images", []),
    ):
        listed = [str(bundle / "configs" / f"{name}.json") for name in files]
        done = call(
            *(torchrun if run_id == "training" else []),
            *("-m", "monai.bundle", "run", run_id, "--config_file", listed, "--bundle_root", bundle),
            *("--dataset_dir", data, "--output_dir", tmp_path / "out", *options),
        )
        assert done.returncode == 0, done.stdout + done.stderr


LOAD = """
import sys
from pathlib import Path
import torch
from monai.bundle import create_workflow, load
import dbisl

places = [Path(place) for place in sys.argv[1:3]]
data = Path(sys.argv[3])
assert Path(dbisl.__file__).is_relative_to(places[0])
for place in places:  # two bundles in one process
    weights = torch.load(place / "dbisl/models/model.pt", weights_only=True)
    for kind in ("train", "inference"):
        network = load("dbisl", bundle_dir=place, workflow_type=kind, device="cpu")
        assert all(torch.equal(weights[name], tensor) for name, tensor in network.state_dict().items())
        output = network.eval()(torch.randn(1, 1, 16, 16, 16))
        assert isinstance(output, torch.Tensor) == (kind == "inference")
    for kind, dataset_dir in (("train", data), ("inference", data / "images")):
        workflow = create_workflow(
            config_file=str(place / f"dbisl/configs/{kind}.json"),
            meta_file=str(place / "dbisl/configs/metadata.json"),
            logging_file=False,
            workflow_type=kind,
            bundle_root=str(place / "dbisl"),
            dataset_dir=str(dataset_dir),
            output_dir=str(place / "output"),
            device="cpu",
            patch_size=[16, 16, 16],
        )
        assert workflow.check_properties() == []
    workflow.run()
    assert len(list((place / "output").glob("*_seg.nii.gz"))) == len(list((data / "images").glob("*.nii.gz")))
"""


def test_downloaded_bundles_load_and_run_from_elsewhere(archive: Path, demo_data: Path, tmp_path: Path) -> None:
    places = [tmp_path / "one", tmp_path / "two"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(places[0] / "dbisl")}
    for place in places:
        download = [sys.executable, "-m", "monai.bundle", "download", "dbisl", "--url", archive.as_uri()]
        command = [*download, "--bundle_dir", str(place), "--progress", "False"]
        subprocess.run(command, check=True, capture_output=True, env=environment, cwd=tmp_path, timeout=120)
    other = torch.load(places[1] / "dbisl/models/model.pt", weights_only=True)
    torch.save({name: tensor + 1 for name, tensor in other.items()}, places[1] / "dbisl/models/model.pt")
    command = [sys.executable, "-c", LOAD, *map(str, places), str(demo_data)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
