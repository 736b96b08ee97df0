"""Pack the committed bundle as the model zoo hosts it: a zip and its checksums.

    python scripts/package.py --output_dir dist

writes ``dbisl_v0.6.0.zip``, with all files of ``bundle/`` that git tracks in a folder ``dbisl``, and
``dbisl_v0.6.0.json``, with the SHA-1 and the SHA-256 of the zip. The version comes from ``metadata.json``. The same
commit always gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import zipfile
from pathlib import Path

import fire

from dbisl.utils import atomic_path

ROOT = Path(__file__).resolve().parents[1]
NAME = "dbisl"
REQUIRED_FILES = ("LICENSE", "configs/metadata.json", "configs/inference.json", "docs/README.md", "models/model.pt")
EPOCH = (1980, 1, 1, 0, 0, 0)
"""Time of all files in the zip, the earliest that a zip can hold; their real times would change its bytes."""


def package(output_dir: str = "dist", root: str = str(ROOT)) -> Path:
    """Write the zip and its checksums.

    Args:
        output_dir: folder of the zip; it is made when it is missing.
        root: folder of the repository.

    Returns:
        The path of the zip.

    Raises:
        SystemExit: when the bundle has uncommitted changes, or lacks a file that the model zoo requires.
    """
    changes = _git(root, "status", "--porcelain", "--", "bundle").splitlines()
    if changes:
        raise SystemExit(f"bundle has {len(changes)} uncommitted changes ({changes[0].strip()}, ...): expected none.")
    tracked = sorted(
        name.removeprefix("bundle/") for name in _git(root, "ls-files", "-z", "bundle").split("\0") if name
    )
    missing = [name for name in REQUIRED_FILES if name not in tracked]
    if missing:
        raise SystemExit(
            f"bundle lacks {', '.join(missing)}: the model zoo expects {', '.join(REQUIRED_FILES)} in git."
        )
    bundle = Path(root) / "bundle"
    version = json.loads((bundle / "configs" / "metadata.json").read_text())["version"]
    path = Path(output_dir) / f"{NAME}_v{version}.zip"
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name in tracked:
            entry = zipfile.ZipInfo(f"{NAME}/{name}", EPOCH)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, (bundle / name).read_bytes(), zipfile.ZIP_DEFLATED)
    content = path.read_bytes()
    sums = {algorithm: hashlib.new(algorithm, content).hexdigest() for algorithm in ("sha1", "sha256")}
    path.with_suffix(".json").write_text(json.dumps({path.stem: sums}, indent=4) + "\n")
    print(f"{path}: {len(tracked)} files, {len(content) / 2**20:.1f} MiB, SHA-256 {sums['sha256']}")
    return path


def _git(root: str, *arguments: str) -> str:
    """Return the output of a git command in a repository."""
    return subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    fire.Fire(package)
