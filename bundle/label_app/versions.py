"""List the versions of the served weights, or serve an earlier version again.

Run it in the bundle's folder::

    python label_app/versions.py list models
    python label_app/versions.py restore models
"""

from __future__ import annotations

import sys
from pathlib import Path

import fire

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dbisl.handlers import ModelVersions


def print_versions(ckpt_dir: str) -> None:
    """Print the served weights and the earlier versions, the latest first, each with its validation score.

    Args:
        ckpt_dir: the folder with ``model.pt`` and ``versions``.
    """
    versions = ModelVersions(ckpt_dir)
    if versions.served.is_file():
        record = versions.record()
        scans = len(record["trained_on"])
        print(f"{versions.served.name}: {record['date']}, score {record['score']}, {scans} labeled scans")
    for name in reversed(versions.names()):
        print(name)


def restore(ckpt_dir: str, version: str | None = None) -> None:
    """Serve an earlier version again. The weights that are served now become a version.

    Args:
        ckpt_dir: the folder with ``model.pt`` and ``versions``.
        version: the name of the version, as ``list`` prints it; by default the version that was served last.
    """
    versions = ModelVersions(ckpt_dir)
    print(f"{versions.served.name} is {versions.restore(version)} again")


if __name__ == "__main__":
    fire.Fire({"list": print_versions, "restore": restore})
