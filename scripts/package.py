"""Pack the bundle as the model zoo hosts it: one zip and its checksums, from what is committed.

    python scripts/package.py --output_dir dist

writes ``dbisl_v0.5.0.zip`` (the version is that of ``metadata.json``), with everything of ``bundle/`` that git tracks
in a folder ``dbisl``, and beside it ``dbisl_v0.5.0.json`` with the SHA-1 and SHA-256 of the zip. The same commit gives
the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import zipfile
from pathlib import Path

import fire

ROOT = Path(__file__).resolve().parent.parent
NAME = "dbisl"
REQUIRED = ("LICENSE", "configs/metadata.json", "configs/inference.json", "docs/README.md", "models/model.pt")
EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest time that a zip can hold: when files were checked out must not change its bytes."""


def package(output_dir: str = "dist", root: str = str(ROOT)) -> Path:
    """Write the zip and its checksums.

    Args:
        output_dir: made when it is missing.
        root: the repository.

    Returns:
        The zip's path.

    Raises:
        SystemExit: when the bundle has changes that are not committed, or lacks a file that the zoo asks for.
    """
    changes = _git(root, "status", "--porcelain", "--", "bundle").splitlines()
    if changes:
        raise SystemExit(f"bundle has {len(changes)} uncommitted changes ({changes[0].strip()}, ...): expected none.")
    tracked = sorted(
        name.removeprefix("bundle/") for name in _git(root, "ls-files", "-z", "bundle").split("\0") if name
    )
    missing = [name for name in REQUIRED if name not in tracked]
    if missing:
        raise SystemExit(f"bundle lacks {', '.join(missing)}: the model zoo expects {', '.join(REQUIRED)} in git.")
    bundle = Path(root) / "bundle"
    version = json.loads((bundle / "configs" / "metadata.json").read_text())["version"]
    path = Path(output_dir) / f"{NAME}_v{version}.zip"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with zipfile.ZipFile(temporary, "w") as archive:
        for name in tracked:
            entry = zipfile.ZipInfo(f"{NAME}/{name}", EPOCH)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, (bundle / name).read_bytes(), zipfile.ZIP_DEFLATED)
    os.replace(temporary, path)
    content = path.read_bytes()
    sums = {algorithm: hashlib.new(algorithm, content).hexdigest() for algorithm in ("sha1", "sha256")}
    path.with_suffix(".json").write_text(json.dumps({path.stem: sums}, indent=4) + "\n")
    print(f"{path}: {len(tracked)} files, {len(content) / 2**20:.1f} MiB, SHA-256 {sums['sha256']}")
    return path


def _git(root: str, *arguments: str) -> str:
    return subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    fire.Fire(package)
