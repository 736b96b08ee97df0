"""Pictures of an evaluation's cases."""

from __future__ import annotations

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

from dbisl.utils.files import atomic_path, case_name

PANELS: dict[str, tuple[str, dict[str, Any]]] = {
    Keys.IMAGE: ("image", {"cmap": "gray"}),
    Keys.LABEL: ("truth", {"cmap": "viridis", "interpolation": "nearest"}),
    Keys.PRED: ("prediction", {"cmap": "viridis", "interpolation": "nearest"}),
    "pred_sdm": ("signed distance", {"cmap": "RdBu", "vmin": -1, "vmax": 1}),
    "pred_uncertainty": ("uncertainty", {"cmap": "magma", "vmin": 0, "vmax": 0.5}),
}
"""Title and drawing options of each panel, by the key of its map."""


class Previews:
    """Writes a picture of each case: image, truth, prediction, signed distance and uncertainty, side by side.

    Args:
        output_dir: folder for one PNG file per case; made when it is missing.
        max_cases: largest number of pictures in an epoch.
    """

    def __init__(self, *, output_dir: str, max_cases: int) -> None:
        self.output_dir = Path(output_dir)
        self.max_cases = max_cases
        self._drawn: list[str] = []

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator that decollates."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._reset)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def _reset(self, engine: Engine) -> None:
        self._drawn.clear()

    def __call__(self, engine: Any) -> None:
        if idist.get_rank() > 0:
            return
        for case in engine.state.output[: self.max_cases - len(self._drawn)]:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            name = case_name(case[Keys.IMAGE].meta["filename_or_obj"])
            namesakes = self._drawn.count(name)  # scans in several folders may share a file name
            draw_case(case, self.output_dir / (f"{name} ({namesakes + 1}).png" if namesakes else f"{name}.png"))
            self._drawn.append(name)


def draw_case(case: Mapping[str, torch.Tensor], path: Path) -> None:
    """Draw one slice of a case as a row of panels.

    The slice is the one along the last axis in which the truth (or, without it, the prediction) is largest.

    Args:
        case: ``image`` and, if present, ``label``, ``pred`` (class indices), ``pred_sdm`` (``K`` maps) and
            ``pred_uncertainty``, each ``channels x *spatial`` on one grid.
        path: where to write the PNG.
    """
    arrays = {key: convert_to_numpy(value).astype(np.float32) for key, value in case.items() if key in PANELS}
    guide = arrays.get(Keys.LABEL, arrays.get(Keys.PRED))
    if guide is not None and guide.ndim == 4:
        depth = int((guide[0] > 0).sum(axis=(0, 1)).argmax())
        arrays = {key: array[..., depth] for key, array in arrays.items()}
    panels = [(title, key, options) for key, (title, options) in PANELS.items() if key in arrays]
    classes = max(float(array.max()) for key, array in arrays.items() if key in (Keys.LABEL, Keys.PRED))
    image = case[Keys.IMAGE]
    width, height = image.pixdim[:2].tolist() if isinstance(image, MetaTensor) else (1.0, 1.0)
    figure = Figure(figsize=(3 * len(panels), 3.2), layout="constrained")
    for axes, (title, key, options) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
        # The SDM of the foreground is the largest over the classes that are not background.
        plane = arrays[key][1:].max(axis=0) if key == "pred_sdm" else arrays[key][0]
        limits = {"vmin": 0, "vmax": max(classes, 1)} if key in (Keys.LABEL, Keys.PRED) else {}
        axes.imshow(np.rot90(plane), aspect=height / width, **{**options, **limits})
        axes.set_title(title)
        axes.axis("off")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=100, format="png")
