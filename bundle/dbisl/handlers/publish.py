"""Which weights are served, and those that were served before.

``models/model.pt`` is what inference and servers load. It is only ever replaced by whole weights in one step, and what
it was goes to ``models/versions``, named by its date and score::

    python -m dbisl.versions list models
    python -m dbisl.versions restore models
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from dbisl.utils.errors import InputError

SERVED = "model.pt"


class ModelVersions:
    """The served weights of a folder, and their predecessors.

    Beside ``model.pt`` stands ``model.json``, its record: ``date`` (UTC), ``score`` (None if it was not validated),
    ``trained_on`` (names of the labeled scans), and the SHA-256 of the weights that it speaks of.

    Args:
        ckpt_dir: the folder.
    """

    def __init__(self, ckpt_dir: str | Path) -> None:
        self.served = Path(ckpt_dir) / SERVED
        self.folder = Path(ckpt_dir) / "versions"

    def record(self) -> dict[str, Any]:
        """The record of the served weights; of weights that came without one, their date alone."""
        path = self.served.with_suffix(".json")
        if path.is_file():
            record = json.loads(path.read_text())
            if record.get("sha256") == _sha256(self.served):
                return dict(record)
        date = datetime.fromtimestamp(self.served.stat().st_mtime, timezone.utc)
        return {"date": _text(date), "score": None, "trained_on": [], "sha256": _sha256(self.served)}

    def publish(self, weights: Path, score: float | None, trained_on: Iterable[str]) -> None:
        """Serve a file's weights from now on. The file is moved; what was served becomes a version.

        Args:
            weights: in the same folder.
            score: on the validation scans; None where there are none.
            trained_on: names of the labeled scans.
        """
        record = {"date": _text(datetime.now(timezone.utc)), "score": score, "trained_on": sorted(trained_on)}
        self._keep_served()
        self._serve(weights, {**record, "sha256": _sha256(weights)})

    def names(self) -> list[str]:
        """The versions, the one that was served last at the end.

        What is served already is none: a process that was killed while it replaced the model has left it there.
        """
        served = _sha256(self.served) if self.served.is_file() else None
        records = {path.stem: json.loads(path.read_text()) for path in self.folder.glob("*.json")}
        found = [name for name in records if (self.folder / f"{name}.pt").is_file()]
        others = [name for name in found if records[name]["sha256"] != served]
        return sorted(others, key=lambda name: str(records[name]["replaced"]))

    def restore(self, name: str | None = None) -> str:
        """Serve a version again, and keep what is served now as one.

        Args:
            name: of the version; None: the one that was served last.

        Returns:
            Its name.

        Raises:
            InputError: when there is no such version.
        """
        names = self.names()
        if not names or name not in (None, *names):
            known = ", ".join(names) or "none"
            raise InputError(f"{self.folder}: has no version {name or 'to restore'}; there are: {known}.")
        name = name or names[-1]
        chosen, temporary = self.folder / f"{name}.pt", self.served.with_name(f".{SERVED}.{os.getpid()}")
        record = json.loads(chosen.with_suffix(".json").read_text())
        self._keep_served()
        _copy(chosen, temporary)
        os.utime(temporary)  # a server looks for a new date
        self._serve(temporary, {key: value for key, value in record.items() if key != "replaced"})
        chosen.unlink()
        chosen.with_suffix(".json").unlink()
        return name

    def _keep_served(self) -> None:
        if not self.served.is_file():
            return
        record = self.record()
        score = "unvalidated" if record["score"] is None else f"{record['score']:.4f}"
        name = f"{record['date'].replace(':', '')}_{score}_{record['sha256'][:6]}"
        self.folder.mkdir(exist_ok=True)
        record["replaced"] = _text(datetime.now(timezone.utc))
        _write(self.folder / f"{name}.json", record)
        temporary = self.folder / f".{name}.{os.getpid()}"
        _copy(self.served, temporary)
        os.replace(temporary, self.folder / f"{name}.pt")
        temporary.unlink(missing_ok=True)  # two names of one file are left as they are

    def _serve(self, weights: Path, record: dict[str, Any]) -> None:
        os.replace(weights, self.served)
        weights.unlink(missing_ok=True)
        _write(self.served.with_suffix(".json"), record)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _text(date: datetime) -> str:
    return date.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _copy(source: Path, target: Path) -> None:
    """A second name for the same bytes where the file system has such; files of weights are never written in place."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _write(path: Path, record: dict[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(record, indent=4) + "\n")
    os.replace(temporary, path)
