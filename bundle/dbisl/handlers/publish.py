"""Publishing a trained network: which weights are served, and which were served before.

``models/model.pt`` is what inference and servers load. It is only ever replaced by whole weights in one step. What it
replaces stays in ``models/versions``, named by date and score; ``label_app/versions.py`` lists and restores them.
"""

from __future__ import annotations

import copy
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

from dbisl.data.statistics import describe_scans
from dbisl.handlers.checkpoints import BEST_MODEL, FINAL_MODEL
from dbisl.utils.errors import InputError
from dbisl.utils.files import atomic_path
from dbisl.utils.recipe import differences, next_record_path, read_record, record_path, sha256

logger = logging.getLogger(__name__)

SERVED_MODEL = "model.pt"


class ModelVersions:
    """The served weights of a folder, and the weights that were served before.

    Beside ``model.pt`` stands ``model.json``, its record: ``date`` (UTC), ``score`` (None if it was not validated),
    ``trained_on`` (names of the labeled scans), the SHA-256 of the weights that it describes, and their ``recipe``
    (:mod:`dbisl.utils.recipe`), if it is known. A version keeps its record.

    Args:
        ckpt_dir: the folder.
    """

    def __init__(self, ckpt_dir: str | Path) -> None:
        self.served = Path(ckpt_dir) / SERVED_MODEL
        self.folder = Path(ckpt_dir) / "versions"

    def record(self) -> dict[str, Any]:
        """Return the record of the served weights; for weights that came without one, only their date is known."""
        record = read_record(self.served)
        if record is not None:
            return record
        date = datetime.fromtimestamp(self.served.stat().st_mtime, timezone.utc)
        return {"date": _iso_date(date), "score": None, "trained_on": [], "sha256": sha256(self.served)}

    def publish(
        self, weights: Path, score: float | None, trained_on: Iterable[str], recipe: Mapping[str, Any] | None = None
    ) -> None:
        """Serve a file's weights from now on. The file is moved; what was served becomes a version.

        Weights that are served already leave everything as it is.

        Args:
            weights: a file in the same folder.
            score: score on the validation scans; None where there are none.
            trained_on: names of the labeled scans.
            recipe: the recipe of the weights; None: not known.
        """
        record = make_record(weights, score, trained_on, recipe)
        if self.served.is_file() and sha256(self.served) == record["sha256"]:
            weights.unlink()
            return
        self._keep_served()
        self._announce(record)
        os.replace(weights, self.served)
        weights.unlink(missing_ok=True)  # os.replace leaves two names of one file as they are
        self._settle()

    def names(self) -> list[str]:
        """Return the versions, the latest last.

        The weights that are served are left out: a process that was killed while it replaced the model may have left
        them there.
        """
        served = sha256(self.served) if self.served.is_file() else None
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
        self._announce({key: value for key, value in record.items() if key != "replaced"})
        with atomic_path(self.served) as temporary:
            _link_or_copy(chosen, temporary)
            os.utime(temporary)  # a server looks for a new date
        self._settle()
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

    def _announce(self, record: Mapping[str, Any]) -> None:
        """Write the record of the weights that come next: even if this process is killed, they are never without."""
        _write_json(next_record_path(self.served), record)

    def _settle(self) -> None:
        """Make the announced record the record of the served weights."""
        os.replace(next_record_path(self.served), record_path(self.served))


def make_record(
    weights: Path,
    score: float | None,
    trained_on: Iterable[str],
    recipe: Mapping[str, Any] | None = None,
    date: datetime | None = None,
) -> dict[str, Any]:
    """Return the record of weights; the arguments are those of :meth:`ModelVersions.publish`.

    Args:
        date: when they were trained, with a time zone; None: now.
    """
    record = {
        "date": _iso_date(date or datetime.now(timezone.utc)),
        "score": score,
        "trained_on": sorted(trained_on),
        "sha256": sha256(weights),
    }
    return record if recipe is None else {**record, "recipe": dict(recipe)}


class PublishModel:
    """Publishes the network of a completed training as ``model.pt``, unless the served one is better.

    The best network is published (the last one, where there is no validation scan). The ``model.pt`` from before is
    evaluated on the same validation scans when the training starts; it stays if it is better, and otherwise becomes a
    version (:class:`ModelVersions`). Until the training completes, and when it fails or is stopped, ``model.pt`` stays
    as it is.

    Beside each file of weights stands its record, with the recipe of the training and a description of its scans
    (:func:`dbisl.data.describe_scans`).

    ``engine.state.trained_on`` lists the labeled scans of the training and of the weights that it started from; it is
    saved with the trainer's own state.

    Args:
        ckpt_dir: folder of the models.
        model: network to publish, as in :class:`dbisl.handlers.Checkpoints`; attach this handler after that one.
        network: the trained network, into which another handler may have loaded the served weights.
        evaluator: gives the score of the served weights.
        labeled: the labeled training cases, for the record of the published weights.
        validation: the validation cases. Served weights that were trained on one of them cannot be compared and are
            replaced, and so are weights of another recipe.
        unlabeled: the unlabeled training cases, for the recipe.
        recipe: the recipe of this training, from :func:`dbisl.utils.describe_recipe`; None: the records have none.
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
        unlabeled: Sequence[Mapping[str, Any]] = (),
        recipe: Mapping[str, Any] | None = None,
    ) -> None:
        self.ckpt_dir = Path(ckpt_dir)
        self.recipe = recipe
        self.labeled_cases = labeled
        self.unlabeled_cases = unlabeled
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
        record = self.versions.record()
        for difference in differences(self.recipe or {}, record.get("recipe", {})):
            logger.info("%s will be replaced: it was %s", path, difference)
            return -math.inf
        # Of all processes, each of which validates its share: all of them evaluate, or none.
        seen = int(idist.all_reduce(len(self.validation.intersection(record["trained_on"]))))
        if seen:
            logger.info("%s was trained on %d of the validation scans: it will be replaced", path, seen)
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
        best, final, score = self.ckpt_dir / BEST_MODEL, self.ckpt_dir / FINAL_MODEL, engine.state.best_score
        recipe = self._recipe()
        if recipe is not None:
            _write_json(record_path(final), make_record(final, None, engine.state.trained_on, recipe))
        if score == -math.inf:
            logger.warning(
                "nothing was validated (no validation scan, or none with a structure): model.pt is the last network"
            )
            shutil.copyfile(final, best)
            self.versions.publish(best, None, engine.state.trained_on, recipe)
        elif self._to_beat is not None and score < self._to_beat:
            logger.warning(
                "model.pt stays: it reaches %.4f on the validation scans, this training %.4f (%s)",
                self._to_beat,
                score,
                best,
            )
            if recipe is not None and best.is_file():
                _write_json(record_path(best), make_record(best, score, engine.state.trained_on, recipe))
        elif best.is_file():  # if not, an earlier run has published it and nothing was better since
            self.versions.publish(best, score, engine.state.trained_on, recipe)
            logger.info("model.pt is the best network of this training, %.4f", score)

    def _recipe(self) -> dict[str, Any] | None:
        """Return the recipe with the description of the scans."""
        if self.recipe is None:
            return None
        scans = describe_scans(
            labeled=self.labeled_cases,
            unlabeled=self.unlabeled_cases,
            spatial_dims=len(self.recipe["patch_size"]),
            in_channels=self.recipe["in_channels"],
        )
        return {**self.recipe, "scans": scans}


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
