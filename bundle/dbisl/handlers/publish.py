"""Publishing a trained network: which weights are served, and which were served before.

``models/model.pt`` is what inference and servers load. It is only ever replaced by whole weights in one step. What it
replaces stays in ``models/versions``, named by date and score; ``label_app/versions.py`` lists and restores them.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Events
from monai.engines.evaluator import Evaluator
from monai.utils.enums import CommonKeys as Keys
from torch import nn

from dbisl.handlers.checkpoints import BEST_MODEL, FINAL_MODEL
from dbisl.utils.errors import InputError
from dbisl.utils.files import atomic_path

logger = logging.getLogger(__name__)

SERVED_MODEL = "model.pt"


class ModelVersions:
    """The served weights of a folder, and the weights that were served before.

    Beside ``model.pt`` stands ``model.json``, its record: ``date`` (UTC), ``score`` (None if it was not validated),
    ``trained_on`` (names of the labeled scans), and the SHA-256 of the weights that it describes.

    Args:
        ckpt_dir: the folder.
    """

    def __init__(self, ckpt_dir: str | Path) -> None:
        self.served = Path(ckpt_dir) / SERVED_MODEL
        self.folder = Path(ckpt_dir) / "versions"

    def record(self) -> dict[str, Any]:
        """Return the record of the served weights; for weights that came without one, only their date is known."""
        path = self.served.with_suffix(".json")
        sha256 = _sha256(self.served)
        if path.is_file():
            record = json.loads(path.read_text())
            if record.get("sha256") == sha256:
                return dict(record)
        date = datetime.fromtimestamp(self.served.stat().st_mtime, timezone.utc)
        return {"date": _iso_date(date), "score": None, "trained_on": [], "sha256": sha256}

    def publish(self, weights: Path, score: float | None, trained_on: Iterable[str]) -> None:
        """Serve a file's weights from now on. The file is moved; what was served becomes a version.

        Weights that are served already leave everything as it is.

        Args:
            weights: a file in the same folder.
            score: score on the validation scans; None where there are none.
            trained_on: names of the labeled scans.
        """
        date = _iso_date(datetime.now(timezone.utc))
        record = {"date": date, "score": score, "trained_on": sorted(trained_on), "sha256": _sha256(weights)}
        if self.served.is_file() and _sha256(self.served) == record["sha256"]:
            weights.unlink()
            return
        self._keep_served()
        os.replace(weights, self.served)
        weights.unlink(missing_ok=True)  # os.replace leaves two names of one file as they are
        self._write_record(record)

    def names(self) -> list[str]:
        """Return the versions, the latest last.

        The weights that are served are left out: a process that was killed while it replaced the model may have left
        them there.
        """
        served = _sha256(self.served) if self.served.is_file() else None
        # Hidden files are what killed processes left half-written.
        paths = [path for path in self.folder.glob("*.json") if not path.name.startswith(".")]
        records = {path.stem: json.loads(path.read_text()) for path in paths}
        complete = [name for name in records if (self.folder / f"{name}.pt").is_file()]
        others = [name for name in complete if records[name]["sha256"] != served]
        return sorted(others, key=lambda name: str(records[name]["replaced"]))

    def restore(self, name: str | None = None) -> str:
        """Serve a version again, and keep what is served now as a version.

        Args:
            name: the version; None: the one that was served last.

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
        chosen = self.folder / f"{name}.pt"
        record = json.loads(chosen.with_suffix(".json").read_text())
        self._keep_served()
        with atomic_path(self.served) as temporary:
            _link_or_copy(chosen, temporary)
            os.utime(temporary)  # a server looks for a new date
        self._write_record({key: value for key, value in record.items() if key != "replaced"})
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
        record["replaced"] = _iso_date(datetime.now(timezone.utc))
        _write_json(self.folder / f"{name}.json", record)
        with atomic_path(self.folder / f"{name}.pt") as temporary:
            _link_or_copy(self.served, temporary)

    def _write_record(self, record: Mapping[str, Any]) -> None:
        _write_json(self.served.with_suffix(".json"), record)


class PublishModel:
    """Publishes the network of a completed training as ``model.pt``, unless the served one is better.

    The best network is published (the last one, where there is no validation scan). The ``model.pt`` from before is
    evaluated on the same validation scans when the training starts; it stays if it is better, and otherwise becomes a
    version (:class:`ModelVersions`). Until the training completes, and when it fails or is stopped, ``model.pt`` stays
    as it is.

    ``engine.state.trained_on`` lists the labeled scans of the training and of the weights that it started from; it is
    saved with the trainer's own state.

    Args:
        ckpt_dir: folder of the models.
        model: network to publish, as in :class:`dbisl.handlers.Checkpoints`; attach this handler after that one.
        network: the trained network, into which another handler may have loaded the served weights.
        evaluator: gives the score of the served weights.
        labeled: the labeled training cases, for the record of the published weights.
        validation: the validation cases. Served weights that were trained on one of them cannot be compared and are
            replaced.
    """

    def __init__(
        self,
        *,
        ckpt_dir: str,
        model: nn.Module,
        network: nn.Module,
        evaluator: Evaluator,
        labeled: Sequence[Mapping[str, Any]] = (),
        validation: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.ckpt_dir = Path(ckpt_dir)
        self.model = model
        self.network = network
        self.evaluator = evaluator
        self.labeled = {str(case[Keys.IMAGE]) for case in labeled}
        self.validation = {str(case[Keys.IMAGE]) for case in validation}
        self.versions = ModelVersions(ckpt_dir)
        self._to_beat: float | None = None

    def attach(self, engine: Any) -> None:
        """Register with a trainer."""
        engine.state.trained_on = sorted(self.labeled)
        engine.state_dict_user_keys.append("trained_on")
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.COMPLETED, self._publish)

    def _start(self, engine: Any) -> None:
        trained_on = self.labeled.union(engine.state.trained_on)
        if self._to_beat is None:
            if self._starts_from_served():
                trained_on.update(self.versions.record()["trained_on"])
            self._to_beat = self._score_of_served()
        engine.state.trained_on = sorted(trained_on)

    def _starts_from_served(self) -> bool:
        """Whether another handler has loaded the served weights into the network."""
        if not self.versions.served.is_file():
            return False
        served = torch.load(self.versions.served, map_location="cpu", weights_only=True)
        own = self.network.state_dict()
        pairs = zip(own.values(), served.values(), strict=False)
        return len(own) == len(served) and all(
            one.shape == other.shape and one.cpu().equal(other) for one, other in pairs
        )

    def _score_of_served(self) -> float:
        """The served weights' score on the validation scans; minus infinity if it would say nothing."""
        path = self.versions.served
        if not path.is_file() or len(self.evaluator.data_loader) == 0:  # type: ignore[arg-type]
            return -math.inf
        seen = self.validation.intersection(self.versions.record()["trained_on"])
        if seen:
            logger.info("%s was trained on %d of the validation scans: it will be replaced", path, len(seen))
            return -math.inf
        own = copy.deepcopy(self.model.state_dict())
        device = next(self.model.parameters()).device
        weights = torch.load(path, map_location=device, weights_only=True)
        try:
            self.model.load_state_dict(weights)
        except (RuntimeError, TypeError):
            self.model.load_state_dict(own)
            logger.info("%s belongs to another network and will be replaced", path)
            return -math.inf
        with torch.random.fork_rng(devices=[]):  # the training draws the same numbers with and without this
            self.evaluator.run(global_epoch=0)
        self.model.load_state_dict(own)
        score = self.evaluator.state.metrics.get(self.evaluator.state.key_metric_name)
        if score is None:
            return -math.inf
        logger.info("%s reaches %.4f on the validation scans", path, score)
        return float(score)

    @idist.one_rank_only()
    def _publish(self, engine: Any) -> None:
        best, score = self.ckpt_dir / BEST_MODEL, engine.state.best_score
        if score == -math.inf:
            logger.warning(
                "nothing was validated (no validation scan, or none with a structure): model.pt is the last network"
            )
            shutil.copyfile(self.ckpt_dir / FINAL_MODEL, best)
            self.versions.publish(best, None, engine.state.trained_on)
        elif self._to_beat is not None and score < self._to_beat:
            logger.warning(
                "model.pt stays: it reaches %.4f on the validation scans, this training %.4f (%s)",
                self._to_beat,
                score,
                best,
            )
        elif best.is_file():  # if not, an earlier run has published it and nothing was better since
            self.versions.publish(best, score, engine.state.trained_on)
            logger.info("model.pt is the best network of this training, %.4f", score)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _iso_date(date: datetime) -> str:
    return date.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _link_or_copy(source: Path, target: Path) -> None:
    """Give the same bytes a second name where the file system can; files of weights are never written in place."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=4) + "\n")
