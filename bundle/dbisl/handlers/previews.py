"""Pictures of an evaluation's worst cases."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from monai.utils.enums import CommonKeys as Keys
from torch.utils.tensorboard import SummaryWriter

from dbisl.handlers.slices import CaseSlice, class_masks, cut_slice, draw_slice
from dbisl.metrics import dice_by_class
from dbisl.utils.files import atomic_path, case_name

PICTURE = re.compile(r"\d\d+_.*\.png")
"""Names of the files that are written, and of those of an earlier evaluation that are removed."""

DPI = 100
"""Pixels per inch of a picture; :data:`dbisl.handlers.slices.WIDTH` inches are a panel."""


class Previews:
    """Draws the cases with the lowest Dice after each epoch of an evaluator, the worst first.

    Each picture shows the slice that :func:`dbisl.handlers.cut_slice` chooses. The Dice of a case is the mean over its
    foreground classes, as in :class:`dbisl.metrics.ForegroundDice`; cases without a number come last. Of the cases,
    only the slices that may be drawn are kept in memory.

    Attach it to a MONAI ``SupervisedEvaluator`` that decollates. With several processes, each knows only its own cases:
    attach it to one of them.

    Args:
        class_names: names of the classes, background first.
        max_cases: largest number of pictures in an epoch.
        spacing: size of a voxel in millimetres of images that carry no affine, as a cache on disk gives them; these are
            expected along the axes R, A and S.
        output_dir: folder of the pictures, ``01_CASE.png`` the worst; made when it is missing. The pictures of the
            epoch before are removed. None: no files.
        log_dir: folder of TensorBoard's events, with the tags ``validation/01`` and so on; None: no events.
    """

    def __init__(
        self,
        *,
        class_names: Sequence[str],
        max_cases: int,
        spacing: Sequence[float],
        output_dir: str | None = None,
        log_dir: str | None = None,
    ) -> None:
        self.class_names = list(class_names)
        self.max_cases = max_cases
        self.spacing = list(spacing)
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.log_dir = log_dir
        self._writer: SummaryWriter | None = None
        self._seen = 0
        self._worst: list[tuple[float, CaseSlice]] = []

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator that decollates."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._reset)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._look)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._draw)

    def _reset(self, engine: Engine) -> None:
        self._seen = 0
        self._worst.clear()

    def _look(self, engine: Any) -> None:
        for case in engine.state.output if self.max_cases > 0 else []:
            self._seen += 1
            dice = self._dice(case)
            defined = [value for value in dice if not math.isnan(value)]
            score = sum(defined) / len(defined) if defined else math.inf
            if len(self._worst) < self.max_cases or score < self._worst[-1][0]:
                cut = cut_slice(case, self._name(case), dice, len(self.class_names), self.spacing)
                self._worst.append((score, cut))
                self._worst.sort(key=lambda one: one[0])
                del self._worst[self.max_cases :]

    def _dice(self, case: Mapping[str, torch.Tensor]) -> list[float]:
        """The Dice of each foreground class of a case; none without a truth."""
        prediction, reference = case.get(Keys.PRED), case.get(Keys.LABEL)
        if prediction is None or reference is None:
            return []
        dice = []
        for index in range(1, len(self.class_names)):  # one by one: the masks of all classes may not fit
            masks = [class_masks(classes, index).cpu()[None, None] for classes in (prediction, reference)]
            dice.append(float(dice_by_class(*masks)))
        return dice

    def _name(self, case: Mapping[str, torch.Tensor]) -> str:
        path = getattr(case[Keys.IMAGE], "meta", {}).get("filename_or_obj")
        return case_name(path) if path else f"case_{self._seen}"

    def _draw(self, engine: Any) -> None:
        if self.output_dir is not None and self.output_dir.is_dir():
            for path in self.output_dir.glob("*.png"):
                if PICTURE.fullmatch(path.name):
                    path.unlink()
        for rank, (_, cut) in enumerate(self._worst, start=1):
            figure = draw_slice(cut, self.class_names)
            if self.output_dir is not None:
                self.output_dir.mkdir(parents=True, exist_ok=True)
                with atomic_path(self.output_dir / f"{rank:02d}_{cut.name}.png") as temporary:
                    figure.savefig(temporary, dpi=DPI, format="png")
            if self.log_dir is not None:
                self._writer = self._writer or SummaryWriter(self.log_dir)
                self._writer.add_image(f"validation/{rank:02d}", _pixels(figure), engine.state.epoch, dataformats="HWC")
        if self._writer is not None:
            self._writer.flush()
        self._worst.clear()


def _pixels(figure: Figure) -> np.ndarray:
    """The picture of a figure, ``H x W x 3`` unsigned bytes."""
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
