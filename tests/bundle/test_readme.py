"""Every command of the README and of the guides runs, each distinct one once and in the order of the documents.

Trainings are shortened by options that are appended. ``make`` is only asked for its commands.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import dbisl
from scripts.package import package
from tests.bundle.commands import TINY, run_python

DOCUMENTS = (
    "README.md",
    "docs/training.md",
    "docs/inference.md",
    "docs/comparing_methods.md",
    "bundle/docs/README.md",
)
WITH_MAKE = (*DOCUMENTS, "CONTRIBUTING.md", "bundle/docs/annotation.md")
SHORT = {**TINY, "epochs": 1, "iterations_per_epoch": 1}
PROGRAMS = ("python", "torchrun")
SETTING = ("source ", "cd ", "export ")


def commands(root: Path, documents: tuple[str, ...] = DOCUMENTS) -> list[str]:
    lines: list[str] = []
    for document in documents:
        for block in re.findall(r"```bash\n(.*?)```", (root / document).read_text(), flags=re.DOTALL):
            lines += [line for line in block.replace("\\\n", " ").splitlines() if line.strip()]
    return list(dict.fromkeys(lines))


@pytest.fixture(scope="module")
def clone(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that git would give a new user, so that the run's output stays out of the working tree."""
    folder = tmp_path_factory.mktemp("clone") / "repository"
    for name in ("bundle", "scripts"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.pt", "output")
        shutil.copytree(root / name, folder / name, ignore=ignored)
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(root / name, folder / name)
    return folder


def packed(clone: Path) -> Path:
    """The zip of what the clone's commands have made of the bundle so far, weights included."""
    identity = ("-c", "user.name=Tester", "-c", "user.email=tester@example.org", "-c", "commit.gpgsign=false")
    for arguments in (["init", "--quiet"], ["add", "bundle"], ["commit", "--quiet", "--message", "Trained"]):
        subprocess.run(["git", "-C", str(clone), *identity, *arguments], check=True, capture_output=True)
    return package(str(clone / "dist"), str(clone))


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    program, *arguments = command
    if program == "python":
        return run_python(arguments, folder)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    torchrun = [sys.executable, "-m", "torch.distributed.run", *arguments]
    return subprocess.run(
        torchrun, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_make_targets_exist(root: Path, clone: Path) -> None:
    targets = [shlex.split(line) for line in commands(root, WITH_MAKE) if line.startswith("make ")]
    named = {target[1] for target in targets}
    assert named >= {"setup", "demo", "test", "lint", "types", "format", "keys", "annotate", "test-server"}
    (clone / ".venv").mkdir()
    (clone / ".venv" / ".installed").touch()  # as if set up: only the target's own commands are asked for
    for target in targets:
        done = subprocess.run([*target, "--dry-run"], cwd=clone, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and done.stdout.strip(), done.stderr
    shutil.rmtree(clone / ".venv")


def test_commands_of_the_documents_run_in_their_order(root: Path, clone: Path, demo_data: Path) -> None:
    ran = 0
    for line in commands(root):
        if line.startswith(("make ", *SETTING)):
            continue
        command = shlex.split(line.replace("$DATA", str(demo_data)))
        assert command[0] in PROGRAMS, f"no test knows how to run: {line}"
        extra: dict[str, object] = {"features": 4}
        if "download" in command:
            extra = {"progress": False}
            version = dbisl.__version__
            assert command[command.index("--url") + 1] == f"file:///path/to/dbisl_v{version}.zip"
            command[command.index("--url") + 1] = packed(clone).as_uri()
        if "scripts/benchmarks/compare.py" in command:
            extra = {"overrides": {**extra, **SHORT}, "methods": ["supervised"], "labels": [2], "seeds": [0]}
        if "training" in command:
            extra |= SHORT | ({"epochs": 2} if "--resume" in command else {})
            if any("la" in Path(file).stem for file in re.findall(r"datasets/[\w.]+", line)):
                # The tiny data set has three classes and four labels, the left atrium two and eight.
                extra |= {"num_labeled": 2}
        if command[0] == "torchrun":
            extra |= {"device": "cpu"}  # fewer GPUs than processes would be an error
        if "datasets/la" in line:
            extra |= {"class_names": "['background','anterior','posterior']"}
        command += [text for key, value in extra.items() for text in (f"--{key}", str(value))]
        folder = clone / "bundle" if "monai.bundle" in command else clone
        done = run(command, folder)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        ran += 1
    assert ran >= 17
