"""A tiny data set and one short training through the real command, shared by the tests of the commands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.make_demo_data import make_demo_data
from tests.bundle.commands import TINY, Run, run_python


@pytest.fixture(scope="session")
def run_bundle(root: Path) -> Run:
    """``run_bundle(run_id, [config files], key=value, ...)``: the command line, in the bundle's folder.

    ``processes`` of 2 or more are started by torchrun.
    """

    def run(run_id: str, files: list[str], processes: int = 1, **overrides: object) -> subprocess.CompletedProcess[str]:
        listed = "[" + ",".join(f"'{file}'" for file in files) + "]"
        command = ["-m", "monai.bundle", "run", run_id, "--config_file", listed]
        for key, value in overrides.items():
            command += [f"--{key}", str(value)]
        if processes == 1:
            return run_python(command, root / "bundle")
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        environment.pop("PYTHONPATH", None)
        return subprocess.run(
            [sys.executable, *torchrun, *command],
            cwd=root / "bundle",
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def demo_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "data"
    make_demo_data(str(folder), num_labeled=2, num_unlabeled=3, num_validation=2)
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, demo_data: Path, run_bundle: Run) -> Path:
    """Folder of a finished training of two epochs: ``models`` and ``output``."""
    folder = tmp_path_factory.mktemp("trained")
    done = run_bundle(
        "training",
        ["configs/train.json"],
        dataset_dir=demo_data,
        ckpt_dir=folder / "models",
        output_dir=folder / "output",
        **TINY,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "log.txt").write_text(done.stdout + done.stderr)
    return folder
