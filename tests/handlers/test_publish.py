"""What is served, what was served before, and how it comes back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dbisl.handlers import ModelVersions
from dbisl.utils import InputError


def publish(folder: Path, content: bytes, score: float | None) -> None:
    (folder / "new.pt").write_bytes(content)
    ModelVersions(folder).publish(folder / "new.pt", score, ["b.nii.gz", "a.nii.gz"])


def test_published_weights_are_served_and_described(tmp_path: Path) -> None:
    publish(tmp_path, b"one", 0.5)
    record = json.loads((tmp_path / "model.json").read_text())
    assert (tmp_path / "model.pt").read_bytes() == b"one"
    assert record["score"] == 0.5 and record["trained_on"] == ["a.nii.gz", "b.nii.gz"]
    assert ModelVersions(tmp_path).record() == record
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.pt"]


def test_weights_that_came_from_elsewhere_have_a_date_alone(tmp_path: Path) -> None:
    publish(tmp_path, b"one", 0.5)
    (tmp_path / "model.pt").write_bytes(b"other")  # by hand: the record speaks of other weights
    os.utime(tmp_path / "model.pt", (0, 0))
    record = ModelVersions(tmp_path).record()
    assert record["score"] is None and record["trained_on"] == [] and record["date"].startswith("1970-01-01")


def test_every_version_comes_back(tmp_path: Path) -> None:
    versions = ModelVersions(tmp_path)
    for content, score in ((b"one", 0.5), (b"two", None), (b"three", 0.7)):
        publish(tmp_path, content, score)
    first, second = versions.names()
    assert "_0.5000_" in first and "_unvalidated_" in second
    assert versions.restore() == second
    assert (tmp_path / "model.pt").read_bytes() == b"two" and versions.record()["score"] is None
    assert versions.restore(first) == first
    assert (tmp_path / "model.pt").read_bytes() == b"one" and versions.record()["score"] == 0.5
    kept = [(tmp_path / "versions" / f"{name}.pt").read_bytes() for name in versions.names()]
    assert kept == [b"three", b"two"]  # in the order in which they were replaced
    versions.restore()
    assert (tmp_path / "model.pt").read_bytes() == b"two"


def test_killed_while_it_replaced_the_model(tmp_path: Path) -> None:
    publish(tmp_path, b"one", 0.5)
    publish(tmp_path, b"two", 0.6)
    # As far as it had come: what is served is a version already, and one's record came before its weights.
    record = {**ModelVersions(tmp_path).record(), "replaced": "2999-01-01T00:00:00Z"}
    os.link(tmp_path / "model.pt", tmp_path / "versions" / "late.pt")
    (tmp_path / "versions" / "late.json").write_text(json.dumps(record))
    (tmp_path / "versions" / "later.json").write_text(json.dumps(record))
    versions = ModelVersions(tmp_path)
    assert len(versions.names()) == 1 and "_0.5000_" in versions.restore()
    assert (tmp_path / "model.pt").read_bytes() == b"one"
    assert not [path for path in tmp_path.rglob(".*")]


def test_no_such_version_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no version to restore; there are: none"):
        ModelVersions(tmp_path).restore()
    publish(tmp_path, b"one", 0.5)
    publish(tmp_path, b"two", 0.6)
    with pytest.raises(InputError, match=r"has no version 2020; there are: .*_0\.5000_"):
        ModelVersions(tmp_path).restore("2020")


def test_commands(root: Path, tmp_path: Path) -> None:
    publish(tmp_path, b"one", 0.5)
    publish(tmp_path, b"two", 0.6)
    (name,) = ModelVersions(tmp_path).names()

    def run(*arguments: str) -> str:
        command = [sys.executable, "label_app/versions.py", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=root / "bundle", check=True)
        return done.stdout

    lines = run("list", str(tmp_path)).splitlines()
    assert lines[0].startswith("model.pt: ") and "score 0.6, 2 labeled scans" in lines[0] and lines[1:] == [name]
    assert run("restore", str(tmp_path)).strip() == f"model.pt is {name} again"
    assert (tmp_path / "model.pt").read_bytes() == b"one"
