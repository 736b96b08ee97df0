"""Ignite handlers of the workflow: ramp-up, guard against collapse, teacher, checkpoints, previews."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from matplotlib.figure import Figure
from monai.data import MetaTensor
from monai.utils import convert_to_numpy
from monai.utils.enums import CommonKeys as Keys


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
