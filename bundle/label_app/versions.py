"""List the weights that were served, or serve earlier ones again.

python label_app/versions.py list models
python label_app/versions.py restore models
"""

from __future__ import annotations

import sys
from pathlib import Path

import fire

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dbisl.handlers import ModelVersions


def show(ckpt_dir: str) -> None:
    """Print the served weights and the earlier ones, each with its validation score.

    Args:
        ckpt_dir: folder with ``model.pt`` and ``versions``.
    """
    versions = ModelVersions(ckpt_dir)
    if versions.served.is_file():
        record = versions.record()
        scans = len(record["trained_on"])
        print(f"{versions.served.name}: {record['date']}, score {record['score']}, {scans} labeled scans")
    for name in reversed(versions.names()):
        print(name)


def restore(ckpt_dir: str, version: str | None = None) -> None:
    """Serve an earlier version again.

    Args:
        ckpt_dir: folder with ``model.pt`` and ``versions``.
        version: name of the version; the last one by default.
    """
    versions = ModelVersions(ckpt_dir)
    print(f"{versions.served.name} is {versions.restore(version)} again")


if __name__ == "__main__":
    fire.Fire({"list": show, "restore": restore})
