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
import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler
from matplotlib.figure import Figure
from monai.data import MetaTensor
from monai.engines.evaluator import Evaluator
from monai.utils import convert_to_numpy
from monai.utils.enums import CommonKeys as Keys
from torch import nn

from dbisl.cases import InputError
from dbisl.losses import DBiSLLoss
from dbisl.ramp import Ramp
from dbisl.versions import ModelVersions

logger = logging.getLogger(__name__)


class RampUp:
    """Moves ``loss.ramp``, the factor of the terms that need no label.

    Args:
        loss: whose ``ramp`` is set before each iteration.
        ramp: how it moves; it is told the Dice of the labeled patches after each iteration.
    """

    def __init__(self, *, loss: DBiSLLoss, ramp: Ramp) -> None:
        self.loss = loss
        self.ramp = ramp

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_STARTED, self.move)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.watch)

    def move(self, engine: Engine) -> None:
        self.loss.ramp = self.ramp.factor(engine.state.iteration)

    def watch(self, engine: Any) -> None:
        self.ramp.step(engine.state.iteration, engine.state.output["terms"].get("dice"))


class CollapseGuard:
    """Holds the terms that need no label at 0 while far too little or too much foreground is found without labels.

    An answer of one class everywhere satisfies every such term, and once the teacher gives it nothing but the labeled
    terms leads back. After each epoch in which those terms counted, the mean fraction of foreground on the unlabeled
    scans is compared with that in the labels; outside of ``min_ratio`` to ``max_ratio`` times it, the next epoch is one
    of labeled terms alone, and so on until it is back. Each time is logged as a warning. Of labels that were annotated
    in part, ``min_ratio`` is of the fraction among all voxels: who outlines some slices chooses those that show the
    structure. A single class of which less than ``min_ratio`` is found is named in the log, but holds nothing: a rare
    one may be found late, or be rarer in the scans without a label.

    Args:
        ramp: which is held.
        min_ratio: 0 holds nothing for too little: for unlabeled scans of which most show none of the structures.
        max_ratio: infinity holds nothing for too much.
    """

    def __init__(self, *, ramp: Ramp, min_ratio: float, max_ratio: float) -> None:
        if not 0 <= min_ratio < 1 < max_ratio:
            raise ValueError(f"expected 0 <= min_ratio < 1 < max_ratio, got {min_ratio} and {max_ratio}.")
        self.ramp = ramp
        self.min_ratio, self.max_ratio = min_ratio, max_ratio
        self._sums: torch.Tensor | float = 0.0
        self._classes: torch.Tensor | float = 0.0

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.decide)

    def add(self, engine: Any) -> None:
        terms = engine.state.output["terms"]
        if not {"foreground_labeled", "foreground_unlabeled"} <= terms.keys():
            return
        if self.ramp.has_started(engine.state.iteration):
            labeled, unlabeled = terms["foreground_labeled"], terms["foreground_unlabeled"]
            self._sums = self._sums + torch.stack([terms.get("foreground_at_least", labeled), labeled, unlabeled])
            self._classes = self._classes + engine.state.output["classes"]

    def decide(self, engine: Any) -> None:
        (sums, classes), self._sums, self._classes = (self._sums, self._classes), 0.0, 0.0
        if isinstance(sums, float):
            return
        self._name_missing(engine, classes)
        at_least, labeled, unlabeled = idist.all_reduce(sums).tolist()  # type: ignore[union-attr]
        self.ramp.held = not self.min_ratio * at_least <= unlabeled <= self.max_ratio * labeled
        if self.ramp.held:
            logger.warning(
                "epoch %d: the unlabeled scans show %.0f%% of the foreground that the labels show (expected %.0f%% to "
                "%.0f%%): the next epoch has labeled terms alone.",
                engine.state.epoch,
                100 * unlabeled / max(labeled, 1e-9),
                100 * self.min_ratio,
                100 * self.max_ratio,
            )

    def _name_missing(self, engine: Engine, classes: Any) -> None:
        in_labels, found = idist.all_reduce(classes).tolist()  # type: ignore[union-attr]
        for index, (labeled, unlabeled) in enumerate(zip(in_labels, found, strict=True)):
            if index > 0 and unlabeled < self.min_ratio * labeled:
                logger.warning(
                    "epoch %d: the unlabeled scans show %.0f%% of what the labels show of class %d (expected at least "
                    "%.0f%%).",
                    engine.state.epoch,
                    100 * unlabeled / labeled,
                    index,
                    100 * self.min_ratio,
                )


class MeanTeacher:
    """Keeps a teacher's weights at the exponential moving average of a student's, after each iteration.

    The decay of iteration ``t`` is ``min(decay, (1 + t) / (10 + t))``: while the student changes fast the average is
    short, since a mean over very different networks is none (measured on the left atrium after 200 iterations at a
    constant decay of 0.99: Dice 0.81 of the student, 0.03 of the teacher).

    When a training starts (rather than resumes) the teacher is set to the student, so that weights which another
    handler loads into the student at the start reach the teacher too: attach this after such a handler. So it is when
    a training goes on with weights that somebody has put into the student since it stopped, as in each round of a
    federated one.

    Args:
        ema: Ignite's handler that holds both networks; its momentum is ``1 - decay``.
    """

    def __init__(self, *, ema: EMAHandler) -> None:
        self.ema = ema
        self._versions: list[int] | None = None

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_STARTED, self.set_momentum)
        engine.add_event_handler(Events.COMPLETED, self.remember)
        self.ema.attach(engine, name="ema_momentum")

    def start(self, engine: Engine) -> None:
        replaced = self._versions is not None and self._versions != self._student_versions()
        if engine.state.iteration == 0 or replaced:
            self.ema.ema_model.load_state_dict(self.ema.model.state_dict())

    def remember(self, engine: Engine) -> None:
        self._versions = self._student_versions()

    def _student_versions(self) -> list[int]:
        """PyTorch counts how often each tensor was written to."""
        return [parameter._version for parameter in self.ema.model.parameters()]

    def set_momentum(self, engine: Any) -> None:
        engine.state.ema_momentum = max(self.ema.momentum, 9 / (10 + engine.state.iteration))


class Checkpoints:
    """Writes what training leaves behind, each file whole or not at all, and resumes from it.

    - ``checkpoint.pt`` after every epoch: all that a resumed training needs;
    - ``model_best.pt`` while training goes on: the network of the best validation so far;
    - ``model_final.pt``: the network of the end, written only when training completes;
    - ``model.pt``, the weights to serve, when training completes: the best network (the last one, where there is no
      validation scan), unless the ``model.pt`` that was there before is better on the same validation scans. What it
      replaces stays as a version (:class:`dbisl.versions.ModelVersions`). Until then, and when training fails or is
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


class Previews:
    """Writes a picture of each case: image, truth, prediction, signed distance and uncertainty, side by side.

    The slice is the one of the last axis in which the truth (or, without one, the prediction) is largest.

    Args:
        output_dir: one PNG a case goes there.
        max_cases: pictures an epoch at most.
    """

    def __init__(self, *, output_dir: str, max_cases: int) -> None:
        self.output_dir = Path(output_dir)
        self.max_cases = max_cases
        self.written: list[str] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self.reset)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def reset(self, engine: Engine) -> None:
        self.written.clear()

    def __call__(self, engine: Any) -> None:
        if idist.get_rank() > 0:
            return
        for case in engine.state.output[: self.max_cases - len(self.written)]:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            name = Path(case[Keys.IMAGE].meta["filename_or_obj"]).name.split(".nii")[0]
            namesakes = self.written.count(name)  # scans of several folders may share a file name
            draw_case(case, self.output_dir / (f"{name} ({namesakes + 1}).png" if namesakes else f"{name}.png"))
            self.written.append(name)


def draw_case(case: Mapping[str, torch.Tensor], path: Path) -> None:
    """One row of panels of one slice.

    Args:
        case: ``image`` and, as far as they are there, ``label``, ``pred`` (class indices), ``pred_sdm`` (``K`` maps)
            and ``pred_uncertainty``, each ``channels x *spatial`` on one grid.
        path: of the PNG.
    """
    arrays = {key: convert_to_numpy(value).astype(np.float32) for key, value in case.items() if key in _PANELS}
    guide = arrays.get(Keys.LABEL, arrays.get(Keys.PRED))
    if guide is not None and guide.ndim == 4:
        depth = int((guide[0] > 0).sum(axis=(0, 1)).argmax())
        arrays = {key: array[..., depth] for key, array in arrays.items()}
    panels = [(title, key, options) for key, (title, options) in _PANELS.items() if key in arrays]
    classes = max(float(array.max()) for key, array in arrays.items() if key in (Keys.LABEL, Keys.PRED))
    image = case[Keys.IMAGE]
    width, height = image.pixdim[:2].tolist() if isinstance(image, MetaTensor) else (1.0, 1.0)
    figure = Figure(figsize=(3 * len(panels), 3.2), layout="constrained")
    for axes, (title, key, options) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
        # Of the SDM the foreground's: the largest of the classes that are not background.
        plane = arrays[key][1:].max(axis=0) if key == "pred_sdm" else arrays[key][0]
        limits = {"vmin": 0, "vmax": max(classes, 1)} if key in (Keys.LABEL, Keys.PRED) else {}
        axes.imshow(np.rot90(plane), aspect=height / width, **{**options, **limits})
        axes.set_title(title)
        axes.axis("off")
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=100, format="png")
    os.replace(temporary, path)


_PANELS: dict[str, tuple[str, dict[str, Any]]] = {
    Keys.IMAGE: ("image", {"cmap": "gray"}),
    Keys.LABEL: ("truth", {"cmap": "viridis", "interpolation": "nearest"}),
    Keys.PRED: ("prediction", {"cmap": "viridis", "interpolation": "nearest"}),
    "pred_sdm": ("signed distance", {"cmap": "RdBu", "vmin": -1, "vmax": 1}),
    "pred_uncertainty": ("uncertainty", {"cmap": "magma", "vmin": 0, "vmax": 0.5}),
}
