"""Ignite handlers of the workflow: ramp-up, guard against collapse, teacher, checkpoints, previews."""

from __future__ import annotations

import copy
import logging
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.engines.evaluator import Evaluator
from monai.utils.enums import CommonKeys as Keys
from torch import nn

from dbisl.handlers.publish import ModelVersions
from dbisl.utils.errors import InputError

logger = logging.getLogger(__name__)


class Checkpoints:
    """Writes what training leaves behind, each file whole or not at all, and resumes from it.

    - ``checkpoint.pt`` after every epoch: all that a resumed training needs;
    - ``model_best.pt`` while training goes on: the network of the best validation so far;
    - ``model_final.pt``: the network of the end, written only when training completes;
    - ``model.pt``, the weights to serve, when training completes: the best network (the last one, where there is no
      validation scan), unless the ``model.pt`` that was there before is better on the same validation scans. What it
      replaces stays as a version (:class:`dbisl.handlers.ModelVersions`). Until then, and when training fails or is
      stopped, ``model.pt`` is what it was.

    The models are plain state dicts. MONAI's ``CheckpointSaver`` would also save the final model when training fails,
    and would leave a torn file if it is killed while writing.

    Args:
        ckpt_dir: made when it is missing.
        model: the network to serve: the teacher where there is one.
        state: objects with a ``state_dict`` by name; the trainer's own state and the best score are added to them.
        evaluator: whose key metric decides what is best. Attach this handler after the validation handler, and before
            one that acts on the state of a resumed training.
        labeled: the labeled training cases, for the record of the served weights; those of weights that the training
            started from are added.
        validation: the validation cases. Weights that were trained on one of them are not compared with, but replaced.
        resume: whether to start from ``checkpoint.pt``.
    """

    def __init__(
        self,
        *,
        ckpt_dir: str,
        model: nn.Module,
        state: Mapping[str, Any],
        evaluator: Evaluator,
        labeled: Sequence[Mapping[str, Any]] = (),
        validation: Sequence[Mapping[str, Any]] = (),
        resume: bool = False,
    ) -> None:
        self.ckpt_dir = Path(ckpt_dir)
        self.model = model
        self.state = dict(state)
        self.evaluator = evaluator
        self.validation = {str(case[Keys.IMAGE]) for case in validation}
        self.resume = resume
        self.best = -math.inf
        self.trained_on = {str(case[Keys.IMAGE]) for case in labeled}
        self.versions = ModelVersions(ckpt_dir)
        self._to_beat: float | None = None

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.started)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.epoch_completed)
        engine.add_event_handler(Events.COMPLETED, self.completed)

    def started(self, engine: Engine) -> None:
        self.ckpt_dir.mkdir(parents=True, exist_ok=True)
        if self.resume:
            self._load(engine)
            self.resume = False  # a later run of the same trainer goes on from where it is
        if self._to_beat is None:
            if self._starts_from_served():
                self.trained_on.update(self.versions.record()["trained_on"])
            self._to_beat = self._score_of_served()

    def _load(self, engine: Any) -> None:
        path = self.ckpt_dir / "checkpoint.pt"
        if not path.is_file():
            raise InputError(f"{path}: not found; resuming needs the checkpoint of an earlier training.")
        checkpoint = torch.load(path, map_location=engine.state.device, weights_only=True)
        expected = {*self.state, "trainer", "best", "trained_on"}
        if set(checkpoint) != expected:
            raise InputError(
                f"{path}: holds {sorted(checkpoint)}; expected {sorted(expected)}, as a training with the same method "
                "and version writes."
            )
        epochs, length = engine.state.max_epochs, checkpoint["trainer"]["epoch_length"]
        if length != engine.state.epoch_length:
            raise InputError(
                f"{path}: its training has {length} iterations an epoch, this one {engine.state.epoch_length}; "
                "expected the same iterations_per_epoch."
            )
        for name, item in self.state.items():
            item.load_state_dict(checkpoint[name])
        engine.load_state_dict(checkpoint["trainer"])
        engine.state.max_epochs = epochs
        self.best = checkpoint["best"]
        self.trained_on.update(checkpoint["trained_on"])
        logger.info("resumed %s after epoch %d of %d", path, engine.state.epoch, epochs)
        if engine.state.epoch >= epochs:
            logger.warning("nothing is left to train: ask for more than %d epochs", engine.state.epoch)

    def _starts_from_served(self) -> bool:
        """Whether another handler has loaded the weights that are served into the network."""
        if not self.versions.served.is_file():
            return False
        served = torch.load(self.versions.served, map_location="cpu", weights_only=True)
        own = self.state["network"].state_dict() if "network" in self.state else self.model.state_dict()
        pairs = list(zip(own.values(), served.values(), strict=False))
        return len(own) == len(served) and all(
            one.shape == other.shape and one.cpu().equal(other) for one, other in pairs
        )

    def _score_of_served(self) -> float:
        """What the weights that are served now reach on the validation scans; minus infinity if that says nothing."""
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
        except (RuntimeError, TypeError) as error:
            self.model.load_state_dict(own)
            logger.info("%s is of another network and will be replaced (%s)", path, str(error).split("\n")[0])
            return -math.inf
        with torch.random.fork_rng(devices=[]):  # the training draws the same numbers with and without this
            self.evaluator.run(global_epoch=0)
        self.model.load_state_dict(own)
        score = self.evaluator.state.metrics.get(self.evaluator.state.key_metric_name)
        if score is None:
            return -math.inf
        logger.info("%s reaches %.4f on the validation scans", path, score)
        return float(score)

    def epoch_completed(self, engine: Engine) -> None:
        self._keep_best(engine)
        state = {name: item.state_dict() for name, item in self.state.items()}
        rest = {"trainer": engine.state_dict(), "best": self.best, "trained_on": sorted(self.trained_on)}
        self._write("checkpoint.pt", {**state, **rest})

    def _keep_best(self, engine: Engine) -> None:
        name = self.evaluator.state.key_metric_name
        validated = self.evaluator.state.metrics.get(name) if self._validated(engine) else None
        if validated is not None and validated > self.best:
            self.best = float(validated)
            self._write("model_best.pt", self.model.state_dict())
            logger.info("epoch %d: best %s so far, %.4f", engine.state.epoch, name, self.best)

    def _validated(self, engine: Engine) -> bool:
        """Whether the evaluator's metrics are of this epoch; MONAI's ValidationHandler hands it the trainer's."""
        return self.evaluator.state.epoch == engine.state.epoch

    def completed(self, engine: Engine) -> None:
        if self.best == -math.inf and len(self.evaluator.data_loader) > 0:  # type: ignore[arg-type]
            self.evaluator.run(global_epoch=engine.state.epoch)  # it was too short for val_interval
            self._keep_best(engine)
        self._write("model_final.pt", self.model.state_dict())
        self._publish()

    @idist.one_rank_only()
    def _publish(self) -> None:
        best = self.ckpt_dir / "model_best.pt"
        if self.best == -math.inf:
            logger.warning(
                "nothing was validated (no validation scan, or none with a structure): model.pt is the last network"
            )
            shutil.copyfile(self.ckpt_dir / "model_final.pt", best)
            self.versions.publish(best, None, self.trained_on)
        elif self._to_beat is not None and self.best < self._to_beat:
            logger.warning(
                "model.pt stays: it reaches %.4f on the validation scans, this training %.4f (%s)",
                self._to_beat,
                self.best,
                best,
            )
        elif best.is_file():  # if not, it was published by an earlier run and nothing has beaten it since
            self.versions.publish(best, self.best, self.trained_on)
            logger.info("model.pt is the best network of this training, %.4f", self.best)

    @idist.one_rank_only()
    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        temporary = self.ckpt_dir / f".{name}.{os.getpid()}"
        try:
            torch.save(content, temporary)
            os.replace(temporary, self.ckpt_dir / name)
        finally:
            temporary.unlink(missing_ok=True)
