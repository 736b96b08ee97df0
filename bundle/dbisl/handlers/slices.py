"""One slice of a case, and its picture: contours of truth and prediction over the image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing, to_affine_nd
from monai.utils.enums import CommonKeys as Keys
from nibabel.orientations import io_orientation

SDM, UNCERTAINTY = "pred_sdm", "pred_uncertainty"
"""Keys of the maps that are drawn where a case has them."""

THICK = 1.1
"""How many times larger than the others a spacing must be to be the distance between slices."""

WIDTH = 3
"""Inches of a panel."""

DASHED = (0, (2.5, 1.2))
"""The line of a prediction beside the truth: lengths of a dash and of a gap."""

MARGIN = 0.5
"""Margin around the structures in the enlarged panels, as a fraction of their size."""


@dataclass(frozen=True)
class CaseSlice:
    """What a picture shows of a case: one slice, left to right and top to bottom as it is drawn.

    Attributes:
        name: name of the case.
        dice: Dice of each foreground class over the whole case, NaN where neither mask has it; empty without a truth.
        slice_text: which slice it is, such as ``"slice 3 of 20"``; empty in two dimensions.
        aspect: height of a voxel over its width.
        edges: the anatomical directions (``R``, ``A`` or ``S``) of the left and of the upper edge.
        image: ``H x W``.
        masks: by ``label`` and ``pred``, as far as the case has them, the mask of each foreground class,
            ``(K - 1) x H x W``.
        maps: by ``pred_sdm`` and ``pred_uncertainty``, as far as the case has them, ``H x W``.
    """

    name: str
    dice: tuple[float, ...]
    slice_text: str
    aspect: float
    edges: tuple[str, str]
    image: np.ndarray
    masks: dict[str, np.ndarray]
    maps: dict[str, np.ndarray]


def class_masks(classes: torch.Tensor, index: int) -> torch.Tensor:
    """Return the mask of one class, ``*spatial``, of a class map (``1 x *spatial``) or of a channel per class."""
    return classes[0] == index if classes.shape[0] == 1 else classes[index] > 0.5


def cut_slice(
    case: Mapping[str, torch.Tensor], name: str, dice: Sequence[float], num_classes: int, spacing: Sequence[float]
) -> CaseSlice:
    """Return the slice of a case that shows most wrong voxels; where nothing is wrong, most of the structures.

    The slice lies in the plane of the two finest spacings. Where no spacing is clearly the largest, it is axial. It is
    turned as in radiology: right or anterior is on the left, superior or anterior on top.

    Args:
        case: ``image``, ``C x *spatial``, of which the first channel is drawn, and as far as there are any, on the same
            grid: ``label`` and ``pred`` (class maps, ``1 x *spatial``, or a channel per class), ``pred_sdm`` (a channel
            per class) and ``pred_uncertainty`` (``1 x *spatial``).
        name: name of the case.
        dice: Dice of each foreground class; empty without a truth.
        num_classes: number of classes, background included.
        spacing: size of a voxel in millimetres, along the axes R, A and S, of an image without an affine.
    """
    image = case[Keys.IMAGE]
    dims = image.dim() - 1
    affine = image.affine if isinstance(image, MetaTensor) else torch.diag(torch.tensor([*spacing, 1.0]))
    affine = to_affine_nd(dims, affine.cpu())
    sizes = affine_to_spacing(affine, r=dims)
    directions = io_orientation(np.asarray(affine))  # of each axis: which of R, A, S, and whether towards it
    axis = _slice_axis(sizes.tolist(), directions[:, 0].tolist()) if dims == 3 else None
    lower, upper = sorted((index for index in range(dims) if index != axis), key=lambda index: directions[index, 0])
    position = None if axis is None else _position(case, axis, num_classes)

    def drawn(plane: torch.Tensor) -> np.ndarray:
        """The chosen slice of ``channels x *spatial``, ``channels x H x W`` as it is drawn."""
        plane = plane.as_tensor() if isinstance(plane, MetaTensor) else plane
        plane = plane if axis is None else plane.select(axis + 1, position)  # type: ignore[arg-type]
        plane = plane if upper < lower else plane.transpose(1, 2)
        flipped = [place for place, index in ((1, upper), (2, lower)) if directions[index, 1] > 0]
        return plane.flip(flipped).float().cpu().numpy()

    masks: dict[str, np.ndarray] = {}
    for key in (Keys.LABEL, Keys.PRED):
        if case.get(key) is not None:
            planes = torch.from_numpy(drawn(case[key]))
            masks[key] = torch.stack([class_masks(planes, index) for index in range(1, num_classes)]).numpy()
    maps = {}
    if case.get(SDM) is not None:
        maps[SDM] = drawn(case[SDM])[1:].max(axis=0)  # of the foreground: the largest over its classes
    if case.get(UNCERTAINTY) is not None:
        maps[UNCERTAINTY] = drawn(case[UNCERTAINTY])[0]
    return CaseSlice(
        name=name,
        dice=tuple(dice),
        slice_text="" if axis is None else f"slice {position + 1} of {image.shape[axis + 1]}",  # type: ignore[operator]
        aspect=float(sizes[upper] / sizes[lower]),
        edges=("RAS"[int(directions[lower, 0])], "RAS"[int(directions[upper, 0])]),
        image=drawn(image)[0],
        masks=masks,
        maps=maps,
    )


def draw_slice(cut: CaseSlice, class_names: Sequence[str]) -> Figure:
    """Return a figure of a slice: a row of panels, the mean Dice in the title, and a legend with that of each class.

    The first panel shows the whole image. The others are enlarged around the structures: truth and prediction as
    contours, and the signed distance and the uncertainty where the slice has them.

    Args:
        cut: the slice.
        class_names: names of the classes, background first.
    """
    palette = colormaps["tab10" if len(class_names) <= 11 else "tab20"]
    colours = [palette(index % palette.N) for index in range(len(class_names) - 1)]
    box = _box(cut)
    # Each map with its title, how it is coloured, and the contours over it.
    panels: list[tuple[str, np.ndarray, dict[str, Any], list[str]]] = [("image", cut.image, {"cmap": "gray"}, [])]
    titles: dict[str, str] = {Keys.LABEL: "truth", Keys.PRED: "prediction"}
    for key in cut.masks:
        panels.append((titles[key], cut.image, {"cmap": "gray"}, [key]))
    if len(cut.masks) == 2:
        panels.append(("truth and prediction", cut.image, {"cmap": "gray"}, list(cut.masks)))
    if SDM in cut.maps:
        panels.append(("signed distance", cut.maps[SDM], {"cmap": "RdBu", "vmin": -1, "vmax": 1}, []))
    if UNCERTAINTY in cut.maps:
        panels.append(("uncertainty", cut.maps[UNCERTAINTY], {"cmap": "magma", "vmin": 0, "vmax": 0.5}, []))
    ratio = max(cut.image.shape[0] / cut.image.shape[1], (box[1] - box[0]) / (box[3] - box[2])) * cut.aspect
    handles, names = _legend(cut, class_names, colours)
    columns = min(len(names), len(panels))
    height = WIDTH * min(ratio, 1.5) + 0.75 + 0.25 * math.ceil(len(names) / columns)
    figure = Figure(figsize=(WIDTH * len(panels), height), layout="constrained")
    rows = np.atleast_1d(figure.subplots(1, len(panels)))
    for place, (axes, (title, plane, options, keys)) in enumerate(zip(rows, panels, strict=True)):
        axes.imshow(plane, aspect=cut.aspect, **options)
        axes.set(title=title, xticks=[], yticks=[])
        for key in keys:
            _draw_contours(axes, cut.masks[key], colours, dashed=len(keys) == 2 and key == Keys.PRED)
        if len(keys) == 1:
            _fill(axes, cut.masks[keys[0]], colours, cut.aspect)
        if place > 0:
            axes.set(xlim=(box[2] - 0.5, box[3] - 0.5), ylim=(box[1] - 0.5, box[0] - 0.5))
    _mark(rows[0], box, cut)
    figure.suptitle(_title(cut))
    figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False)
    return figure


def _slice_axis(sizes: Sequence[float], directions: Sequence[float]) -> int:
    """The axis across the slices: the one with the largest spacing, or else from inferior to superior."""
    *others, thickest = sorted(range(3), key=sizes.__getitem__)
    return thickest if sizes[thickest] > THICK * sizes[others[-1]] else list(directions).index(2)


def _position(case: Mapping[str, torch.Tensor], axis: int, num_classes: int) -> int:
    """The slice along an axis to draw."""
    across = [index for index in range(3) if index != axis]
    found = {key: case[key] for key in (Keys.LABEL, Keys.PRED) if case.get(key) is not None}
    if not found:
        return int(case[Keys.IMAGE].shape[axis + 1]) // 2
    wrong: torch.Tensor | int = 0
    present: torch.Tensor | int = 0
    for index in range(1, num_classes):
        masks = [class_masks(classes, index).cpu() for classes in found.values()]
        wrong = wrong + (masks[0] != masks[-1]).sum(dim=across)
        present = present + masks[0].sum(dim=across)
    return int(wrong.argmax() if wrong.any() else present.argmax())  # type: ignore[union-attr]


def _box(cut: CaseSlice) -> tuple[int, int, int, int]:
    """The rows and columns (first, end, first, end) of the structures with a margin; the whole slice without any."""
    present = np.any([masks.any(axis=0) for masks in cut.masks.values()], axis=0) if cut.masks else np.zeros(())
    if not present.any():
        return 0, cut.image.shape[0], 0, cut.image.shape[1]
    rows, columns = (np.flatnonzero(present.any(axis=axis)) for axis in (1, 0))
    # As many millimetres on all sides, so that no panel is a narrow strip.
    middles = [(found[0] + found[-1] + 1) / 2 for found in (rows, columns)]
    reach = (0.5 + MARGIN) * max((rows[-1] - rows[0] + 1) * cut.aspect, columns[-1] - columns[0] + 1, 8)
    box: list[int] = []
    for middle, half, size in zip(middles, (reach / cut.aspect, reach), cut.image.shape, strict=True):
        box += [max(math.floor(middle - half), 0), min(math.ceil(middle + half), size)]
    top, bottom, left, right = box
    if max((bottom - top) / cut.image.shape[0], (right - left) / cut.image.shape[1]) > 0.9:
        return 0, cut.image.shape[0], 0, cut.image.shape[1]
    return top, bottom, left, right


def _draw_contours(axes: Axes, masks: np.ndarray, colours: Sequence[tuple[float, ...]], dashed: bool) -> None:
    for mask, colour in zip(masks, colours, strict=True):
        if mask.any():
            # A frame of zeros closes contours at the border.
            rows, columns = (np.arange(-1, size + 1) for size in mask.shape)
            framed = np.pad(mask, 1).astype(float)
            style = DASHED if dashed else "solid"
            axes.contour(columns, rows, framed, levels=[0.5], colors=[colour], linewidths=1.8, linestyles=[style])


def _fill(axes: Axes, masks: np.ndarray, colours: Sequence[tuple[float, ...]], aspect: float) -> None:
    for mask, colour in zip(masks, colours, strict=True):
        overlay = np.zeros((*mask.shape, 4))
        overlay[mask] = (*colour[:3], 0.35)
        axes.imshow(overlay, aspect=aspect, interpolation="nearest")


def _mark(axes: Axes, box: tuple[int, int, int, int], cut: CaseSlice) -> None:
    """Mark the enlarged part of the whole image, and name its edges."""
    top, bottom, left, right = box
    if (bottom - top, right - left) != cut.image.shape:
        corner = (left - 0.5, top - 0.5)
        axes.add_patch(Rectangle(corner, right - left, bottom - top, fill=False, edgecolor="white", linewidth=1))
    options: dict[str, Any] = {"color": "white", "transform": axes.transAxes, "weight": "bold"}
    options["path_effects"] = [withStroke(linewidth=2, foreground="black")]
    axes.text(0.02, 0.5, cut.edges[0], ha="left", va="center", **options)
    axes.text(0.5, 0.98, cut.edges[1], ha="center", va="top", **options)


def _legend(cut: CaseSlice, class_names: Sequence[str], colours: Sequence[Any]) -> tuple[list[Line2D], list[str]]:
    """The lines of the legend and their names: the classes with their Dice, and the lines of both masks."""
    handles = [Line2D([], [], color=colour, linewidth=4) for colour in colours]
    dice = ["absent" if math.isnan(value) else f"{value:.3f}" for value in cut.dice] or [""] * len(colours)
    names = [f"{name} {value}".rstrip() for name, value in zip(class_names[1:], dice, strict=True)]
    if len(cut.masks) == 2:
        handles += [Line2D([], [], color="gray"), Line2D([], [], color="gray", linestyle=DASHED)]
        names += ["truth", "prediction"]
    return handles, names


def _title(cut: CaseSlice) -> str:
    parts = [cut.name]
    defined = [value for value in cut.dice if not math.isnan(value)]
    if defined:
        parts.append(f"Dice {sum(defined) / len(defined):.3f}")
    elif cut.dice:
        parts.append("no structure in truth and prediction")
    return ", ".join([*parts, cut.slice_text] if cut.slice_text else parts)
