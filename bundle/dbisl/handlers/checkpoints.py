"""Saving and resuming a training."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint
from monai.engines.evaluator import Evaluator
from torch import nn

from dbisl.utils.errors import InputError
from dbisl.utils.files import atomic_path

logger = logging.getLogger(__name__)

CHECKPOINT, BEST_MODEL, FINAL_MODEL = "checkpoint.pt", "model_best.pt", "model_final.pt"
"""Names of the files in ``ckpt_dir``."""


class Checkpoints:
    """Saves a training, each file whole or not at all, and resumes it.

    - ``checkpoint.pt`` after every epoch: everything that a resumed training needs;
    - ``model_best.pt``: the network with the best validation score so far;
    - ``model_final.pt``: the last network, written only when the training completes.

    The models are plain state dicts. MONAI's ``CheckpointSaver`` would also save the final model of a training that
    failed, and Ignite's ``Checkpoint`` removes the old file before it writes the new one: a training that is killed in
    between would have neither.

    ``engine.state.best_score`` is the best validation score so far, minus infinity where there is none; it is saved
    with the trainer's own state.

    Args:
        ckpt_dir: folder of the files; made when it is missing.
        model: network to save as the best and the last: the teacher where there is one.
        state: objects with a ``state_dict`` by name, saved beside the trainer's own state.
        evaluator: its key metric decides what is best. Attach this handler after the validation handler, and before
            handlers that act on the state of a resumed training.
        resume: whether to start from ``checkpoint.pt``.

    Raises:
        InputError: when the training starts, if there is no checkpoint to resume from or it is another training's.
    """

    def __init__(
        self, *, ckpt_dir: str, model: nn.Module, state: Mapping[str, Any], evaluator: Evaluator, resume: bool = False
    ) -> None:
        self.ckpt_dir = Path(ckpt_dir)
        self.model = model
        self.state = dict(state)
        self.evaluator = evaluator
        self.resume = resume

    def attach(self, engine: Any) -> None:
        """Register with a trainer."""
        engine.state.best_score = -math.inf
        engine.state_dict_user_keys.append("best_score")
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._save)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _start(self, engine: Engine) -> None:
        self.ckpt_dir.mkdir(parents=True, exist_ok=True)
        if self.resume:
            self._load(engine)
            self.resume = False  # a later run of the same trainer goes on from where it is

    def _load(self, engine: Any) -> None:
        path = self.ckpt_dir / CHECKPOINT
        if not path.is_file():
            raise InputError(f"{path}: not found; resuming needs the checkpoint of an earlier training.")
        checkpoint = torch.load(path, map_location=engine.state.device, weights_only=True)
        found, expected = set(checkpoint), {*self.state, "trainer"}
        if found == expected:
            found, expected = set(checkpoint["trainer"]), set(engine.state_dict())
        if found != expected:
            raise InputError(
                f"{path}: holds {sorted(found)}; expected {sorted(expected)}, as a training with the same method and "
                "version writes."
            )
        epochs, length = engine.state.max_epochs, checkpoint["trainer"]["epoch_length"]
        if length != engine.state.epoch_length:
            raise InputError(
                f"{path}: its training has {length} iterations an epoch, this one {engine.state.epoch_length}; "
                "expected the same iterations_per_epoch."
            )
        Checkpoint.load_objects({**self.state, "trainer": engine}, checkpoint)
        engine.state.max_epochs = epochs
        logger.info("resumed %s after epoch %d of %d", path, engine.state.epoch, epochs)
        if engine.state.epoch >= epochs:
            logger.warning("nothing is left to train: ask for more than %d epochs", engine.state.epoch)

    def _save(self, engine: Engine) -> None:
        self._keep_best(engine)
        state = {name: item.state_dict() for name, item in self.state.items()}
        self._write(CHECKPOINT, {**state, "trainer": engine.state_dict()})

    def _keep_best(self, engine: Any) -> None:
        # The evaluator's metrics are of this epoch if its own epoch is: MONAI's ValidationHandler hands it on.
        if self.evaluator.state.epoch != engine.state.epoch:
            return
        name = self.evaluator.state.key_metric_name
        score = self.evaluator.state.metrics.get(name)
        if score is not None and score > engine.state.best_score:
            engine.state.best_score = float(score)
            self._write(BEST_MODEL, self.model.state_dict())

    def _finish(self, engine: Any) -> None:
        if engine.state.best_score == -math.inf and len(self.evaluator.data_loader) > 0:  # type: ignore[arg-type]
            self.evaluator.run(global_epoch=engine.state.epoch)  # the training was too short for val_interval
            self._keep_best(engine)
        self._write(FINAL_MODEL, self.model.state_dict())

    @idist.one_rank_only()
    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        with atomic_path(self.ckpt_dir / name) as temporary:
            torch.save(content, temporary)
