"""The real MONAI Label server over REST, with the stock app and with ours.

These tests need the environment of the server: ``make test-server``.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("monailabel", reason="needs MONAI Label: make test-server")
import requests
import torch

from dbisl.handlers import ModelVersions
from dbisl.networks import DualTaskVNet
from scripts.make_demo_data import make_demo_data

FEATURES, PATCH = 4, [24, 24, 24]
DEADLINE = 90
"""Seconds to wait for the start of the server, for a line in its log, or for a training."""


class Server:
    """Running server, its folder of scans, and its log."""

    def __init__(self, url: str, studies: Path, log: Path) -> None:
        self.url, self.studies, self._log = url, studies, log

    @property
    def log(self) -> str:
        return self._log.read_text()

    def call(self, method: str, path: str, **options: Any) -> requests.Response:
        return requests.request(method, self.url + path, timeout=120, **options)

    def json(self, method: str, path: str, **options: Any) -> Any:
        response = self.call(method, path, **options)
        assert response.status_code == 200, (path, response.text, self.log[-3000:])
        return response.json()

    def assert_refused(self, path: str, why: str) -> None:
        response = self.call("POST", path, json={})
        assert 400 <= response.status_code < 500 and why in response.text, (response.text, self.log[-3000:])

    def wait_for(self, text: str) -> None:
        """Wait until the log has a text once more than now."""
        before, deadline = self.log.count(text), time.monotonic() + DEADLINE
        while self.log.count(text) == before:
            assert time.monotonic() < deadline, self.log[-3000:]
            time.sleep(0.1)

    def images(self) -> dict[str, dict[str, Any]]:
        objects = self.json("GET", "/datastore/?output=all")["objects"]
        return {name: entry["image"]["info"] for name, entry in objects.items()}

    def submit(self, name: str, label: Path) -> None:
        with label.open("rb") as file:
            self.json("PUT", f"/datastore/label?image={name}", files={"label": (label.name, file)})

    def train(self, model: str, background: bool = False, **options: Any) -> None:
        request = {"max_epochs": 1, "device": "cpu", "multi_gpu": False, **options}
        self.json("POST", f"/train/{model}{'' if background else '?run_sync=true'}", json=request)
        deadline = time.monotonic() + DEADLINE
        while background and (status := self.json("GET", "/train/")["status"]) != "DONE":
            assert status in ("SUBMITTED", "PENDING", "RUNNING") and time.monotonic() < deadline, self.log[-3000:]
            time.sleep(0.5)

    def infer(self, model: str, name: str, folder: Path) -> nib.Nifti1Image:
        response = self.call("POST", f"/infer/{model}?image={name}&output=image")
        assert response.status_code == 200, (response.text, self.log[-3000:])
        path = folder / f"{name}_{model}.nii.gz"
        path.write_bytes(response.content)
        return nib.load(path)

    def assert_on_the_grid(self, model: str, name: str, folder: Path) -> None:
        segmentation, scan = self.infer(model, name, folder), nib.load(self.studies / f"{name}.nii.gz")
        assert segmentation.shape == scan.shape
        np.testing.assert_allclose(segmentation.affine, scan.affine, atol=1e-4)
        assert set(np.unique(np.asarray(segmentation.dataobj))) <= {0, 1, 2}


@contextmanager
def serve(command: list[str], studies: Path, log: Path) -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    site = Path(__file__).parents[2] / "bundle" / "label_app" / "site"
    environment = {"MONAI_LABEL_AUTO_UPDATE_SCORING": "false", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(site)}
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *command, "--studies", str(studies), "--host", "127.0.0.1", "--port", str(port)],
            env={**os.environ, **environment},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = Server(f"http://127.0.0.1:{port}", studies, log)
    try:
        deadline = time.monotonic() + DEADLINE
        while True:
            assert process.poll() is None and time.monotonic() < deadline, server.log[-3000:]
            try:
                if server.call("GET", "/info/").status_code == 200:
                    break
            except requests.ConnectionError:
                time.sleep(0.5)
        yield server
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def make_bundle(root: Path, folder: Path, seed: int | None) -> Path:
    """Copy the bundle, with a small network. Give it random weights, or none if ``seed`` is None."""
    ignored = shutil.ignore_patterns("__pycache__", "*.pt", "output", "logs", "*.egg-info")
    shutil.copytree(root / "bundle", folder, ignore=ignored)
    for name, changes in {
        "train.json": {"iterations_per_epoch": 2, "num_workers": 0, "amp": False},
        "inference.json": {"amp": False},
    }.items():
        path = folder / "configs" / name
        config = json.loads(path.read_text())
        config |= {**changes, "patch_size": PATCH, "features": FEATURES}
        path.write_text(json.dumps(config))
    if seed is not None:
        torch.manual_seed(seed)
        network = DualTaskVNet(out_channels=3, features=FEATURES, levels=4, dropout=0.2)
        torch.save(network.state_dict(), folder / "models" / "model.pt")
    return folder


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "data"
    make_demo_data(str(folder), num_labeled=6, num_unlabeled=0, num_validation=0, seed=0)
    return folder


@pytest.fixture
def studies(demo: Path, tmp_path: Path) -> Path:
    shutil.copytree(demo / "images", tmp_path / "studies")
    return tmp_path / "studies"


def label_path(demo: Path, name: str) -> Path:
    return demo / "labels" / f"{name}.nii.gz"


def test_stock_app(root: Path, demo: Path, studies: Path, tmp_path: Path) -> None:
    app = tmp_path / "app"
    shutil.copytree(Path(sys.prefix) / "monailabel" / "sample-apps" / "monaibundle", app)
    bundle = make_bundle(root, app / "model" / "hippocampus", seed=0)
    command = ["-m", "monailabel.main", "start_server", "--app", str(app)]
    command += ["--conf", "models", "hippocampus", "--conf", "zoo_source", "local"]
    with serve(command, studies, tmp_path / "log.txt") as server:
        info = server.json("GET", "/info/")
        assert info["models"]["hippocampus"]["labels"] == {"anterior hippocampus": 1, "posterior hippocampus": 2}
        names = sorted(server.images())
        server.assert_on_the_grid("hippocampus", names[0], tmp_path)
        first = np.asarray(server.infer("hippocampus", names[0], tmp_path).dataobj)
        for name in names[:2]:
            server.submit(name, label_path(demo, name))
        served = (bundle / "models" / "model.pt").read_bytes()
        server.train("hippocampus")
        assert "training on 2 labeled and 4 unlabeled scans" in server.log
        assert (bundle / "models" / "model.pt").read_bytes() != served
        assert [path.read_bytes() for path in (bundle / "models" / "versions").glob("*.pt")] == [served]
        server.assert_on_the_grid("hippocampus", names[3], tmp_path)
        # The running server uses the weights that are served: the new ones, and the old ones once they are restored.
        assert (np.asarray(server.infer("hippocampus", names[0], tmp_path).dataobj) != first).any()
        ModelVersions(bundle / "models").restore()
        assert (np.asarray(server.infer("hippocampus", names[0], tmp_path).dataobj) == first).all()
        batch = "/batch/infer/hippocampus?images=unlabeled&run_sync=true"
        responses = server.json("POST", batch, json={"multi_gpu": False})
        assert sorted(responses) == names[2:]


def test_own_app(root: Path, demo: Path, studies: Path, tmp_path: Path) -> None:
    """Serve two bundles: one with weights, one that is not trained yet."""
    (studies / "overview.png").write_bytes(b"no scan")
    bundles = [make_bundle(root, tmp_path / name, seed) for name, seed in (("first", 0), ("second", None))]
    command = [str(root / "bundle" / "label_app" / "start.py"), "--conf", "bundles", ",".join(map(str, bundles))]
    with serve(command, studies, tmp_path / "log.txt") as server:
        info = server.json("GET", "/info/")
        assert set(info["models"]) == set(info["trainers"]) == {"first", "second"}
        assert {"uncertainty_first", "entropy_second", "random", "first"} <= set(info["strategies"])
        names = sorted(server.images())

        # At the first scan: a segmentation from the bundle with weights, a sentence from the one without.
        server.assert_on_the_grid("first", names[0], tmp_path)
        server.assert_refused("/infer/second?image=" + names[0], "There is no model yet")
        server.assert_refused("/train/second?run_sync=true", "There is no label yet")

        # One labeled scan, five unlabeled ones.
        server.submit(names[0], label_path(demo, names[0]))
        server.train("second", pretrained=False)
        assert "training on 1 labeled and 5 unlabeled scans, validation on 0" in server.log
        for model in ("first", "second"):
            server.assert_on_the_grid(model, names[1], tmp_path)

        # The next scan is the one that the model is least sure of.
        for model in ("first", "second"):
            assert server.json("POST", f"/scoring/uncertainty_{model}?run_sync=true") == {"scored": 5, "failed": {}}
            for strategy, score in (("uncertainty", "disagreement"), ("entropy", "entropy")):
                scores = {name: info.get(f"{model}_{score}") for name, info in server.images().items()}
                expected = max(names[1:], key=scores.__getitem__)
                assert server.json("POST", f"/activelearning/{strategy}_{model}", json={})["id"] == expected
        assert server.json("POST", "/scoring/uncertainty_first?run_sync=true")["scored"] == 0  # nothing has changed

        # All scans labeled: the latest of every five labels is for validation, permanently; no scan is unlabeled.
        for name in names[1:]:
            server.submit(name, label_path(demo, name))
            time.sleep(1.01)  # the dates of labels are whole seconds
        served = (bundles[0] / "models" / "model.pt").read_bytes()
        for background in (False, True):  # 3D Slicer trains in the background
            # val_split does not change the validation scans.
            server.train("first", background, val_split=0)
            assert "training on 5 labeled and 0 unlabeled scans, validation on 1" in server.log
            splits = {name: info["split"] for name, info in server.images().items()}
            assert splits == {**dict.fromkeys(names, "training"), names[-1]: "validation"}
        # One epoch is shorter than val_interval: its model is validated all the same, and served only if not worse.
        assert server.log.count("model.pt reaches 0.") == 2
        if (bundles[0] / "models" / "model.pt").read_bytes() != served:
            assert json.loads((bundles[0] / "models" / "model.json").read_text())["score"] is not None


def test_labels_are_those_of_the_weights(root: Path, demo: Path, studies: Path, tmp_path: Path) -> None:
    """Weights of a heart answer as such, also when they replace others while the server runs."""
    bundle = make_bundle(root, tmp_path / "bundle", seed=0)
    versions = ModelVersions(bundle / "models")
    two, three = {"ventricle": 1}, {"ventricle": 1, "muscle": 2}
    with serve([str(bundle / "label_app" / "start.py")], studies, tmp_path / "log.txt") as server:
        names = sorted(server.images())

        def served_labels() -> dict[str, int]:
            labels: dict[str, int] = server.json("GET", "/info/")["models"]["dbisl"]["labels"]
            return labels

        assert served_labels() == {"anterior hippocampus": 1, "posterior hippocampus": 2}
        server.assert_on_the_grid("dbisl", names[0], tmp_path)
        assert "has no recipe: its labels are those of the bundle's metadata" in server.log
        for labels in (three, two):
            weights = bundle / "models" / "new.pt"
            options = {"out_channels": 1 + len(labels), "features": FEATURES, "levels": 4}
            torch.save(DualTaskVNet(**options).state_dict(), weights)
            recipe = {"class_names": ["background", *labels], "spacing": [1.0 + len(labels)] * 3}
            versions.publish(weights, None, [], recipe)
            assert served_labels() == labels
            server.assert_on_the_grid("dbisl", names[0], tmp_path)
            server.json("POST", "/scoring/uncertainty?run_sync=true")
        assert server.images()[names[0]]["dbisl_entropy"] > 0
        versions.restore()
        assert served_labels() == three
        server.assert_on_the_grid("dbisl", names[0], tmp_path)


def test_partial_labels(root: Path, demo: Path, studies: Path, tmp_path: Path) -> None:
    bundle = make_bundle(root, tmp_path / "bundle", seed=0)
    command = [str(bundle / "label_app" / "start.py"), "--conf", "partial_labels", "true"]
    with serve(command, studies, tmp_path / "log.txt") as server:
        name = sorted(server.images())[0]
        scan = nib.load(label_path(demo, name))
        label = np.asarray(scan.dataobj).copy()
        outlined = np.flatnonzero(label.any(axis=(0, 1)))[::4]
        label[..., ~np.isin(np.arange(label.shape[2]), outlined)] = 0
        nib.save(nib.Nifti1Image(label, scan.affine), tmp_path / "partial.nii.gz")
        # A label without any outline is refused and removed. A draft is accepted unchecked.
        nib.save(nib.Nifti1Image(np.zeros_like(label), scan.affine), tmp_path / "empty.nii.gz")
        for path, tag, status in (("empty", "final", 400), ("partial", "draft", 200)):
            with (tmp_path / f"{path}.nii.gz").open("rb") as file:
                files = {"label": ("label.nii.gz", file)}
                response = server.call("PUT", f"/datastore/label?image={name}&tag={tag}", files=files)
            assert response.status_code == status, response.text
        deadline = time.monotonic() + 10
        while server.json("GET", "/info/")["datastore"]["completed"] > 0:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        server.submit(name, tmp_path / "partial.nii.gz")
        kept = np.asarray(nib.load(studies / "labels" / "final" / f"{name}.nii.gz").dataobj)
        assert (kept[..., outlined] == label[..., outlined]).all()
        assert (np.delete(kept, outlined, axis=2) == 255).all()
        server.train("dbisl")
        assert "training on 1 labeled and 6 unlabeled scans" in server.log  # the labeled scan is among the unlabeled


@pytest.mark.parametrize("moments", [pytest.param(3, id="3"), pytest.param(10, id="10", marks=pytest.mark.slow)])
def test_training_that_is_killed_leaves_the_served_model(
    root: Path, demo: Path, studies: Path, tmp_path: Path, moments: int
) -> None:
    bundle = make_bundle(root, tmp_path / "bundle", seed=0)
    served = (bundle / "models" / "model.pt").read_bytes()
    dice = random.Random(0)
    with serve([str(bundle / "label_app" / "start.py")], studies, tmp_path / "log.txt") as server:
        names = sorted(server.images())
        server.submit(names[0], label_path(demo, names[0]))
        for moment in range(moments):
            server.json("POST", "/train/dbisl", json={"max_epochs": 1000, "device": "cpu", "multi_gpu": False})
            if moment % 5:  # all others are killed while they start
                server.wait_for("training on 1 labeled and 5 unlabeled scans")
            time.sleep(dice.uniform(0, 3))
            server.assert_on_the_grid("dbisl", names[1], tmp_path)  # during the training
            assert server.json("GET", "/train/")["status"] == "RUNNING"
            server.json("DELETE", "/train/")
            assert (bundle / "models" / "model.pt").read_bytes() == served
            server.assert_on_the_grid("dbisl", names[2], tmp_path)
