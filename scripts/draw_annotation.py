"""Draw what an annotator sees, for the guide: ``bundle/docs/annotation.png``.

    python scripts/draw_annotation.py --dataset_dir DATA/hippocampus --output bundle/docs/annotation.png

The bundle's model scores the validation scans, which it was not trained on. The pictures show the least certain scan.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import cast

import fire
import nibabel as nib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from monai.bundle import ConfigWorkflow
from nibabel.spatialimages import SpatialImage

from dbisl.data import IGNORE_LABEL, find_cases, mark_unannotated_slices
from dbisl.engines import ScanScores
from dbisl.utils import atomic_path, case_name

BUNDLE = Path(__file__).resolve().parent.parent / "bundle"
COLOURS = ("tab:orange", "tab:cyan", "tab:pink", "tab:olive", "tab:purple")


def draw(dataset_dir: str, output: str, every: int = 4) -> None:
    """Score the validation scans, segment the least certain one, and draw it.

    Args:
        dataset_dir: data set with labeled validation scans.
        output: where to write the PNG.
        every: distance of the annotated slices in the last picture, in slices.
    """
    cases = find_cases(dataset_dir).validation
    scores = ScanScores(BUNDLE)
    disagreement = {case["image"]: scores(case["image"])["disagreement"] for case in cases}
    case = max(cases, key=lambda one: disagreement[one["image"]])
    maps = _segment(case["image"])
    image, label = _voxels(case["image"]), _voxels(case["label"]).astype(np.uint8)
    some_slices = np.where(np.arange(label.shape[2]) % every == every // 2, label, 0)
    depth = int((label > 0).sum(axis=(0, 1)).argmax())
    side = int((label > 0).sum(axis=(1, 2)).argmax())

    figure = Figure(figsize=(15, 3.6), layout="constrained")
    order, uncertain, proposal, truth, partial = figure.subplots(1, 5)
    values = sorted(disagreement.values(), reverse=True)
    order.bar(range(len(values)), values, color=["tab:red"] + ["tab:gray"] * (len(values) - 1), width=1.0)
    order.set(xlabel="scan", ylabel="disagreement of the two tasks", title="Next Sample: the least certain")
    _draw_slice(uncertain, image[:, :, depth], "where the tasks disagree")
    uncertain.imshow(np.rot90(maps["disagreement"][:, :, depth]), cmap="magma", alpha=0.6)
    _draw_slice(proposal, image[:, :, depth], "Run: the proposal")
    _draw_classes(proposal, maps["seg"][:, :, depth])
    _draw_slice(truth, image[:, :, depth], "corrected, Submit Label")
    _draw_classes(truth, label[:, :, depth])
    _draw_slice(partial, image[side], "or some slices only (from the side)")
    marked = mark_unannotated_slices(some_slices)[side]
    _draw_classes(partial, np.where(marked == IGNORE_LABEL, 0, marked))
    partial.imshow(np.rot90(np.ma.masked_not_equal(marked, IGNORE_LABEL)), cmap=ListedColormap(["black"]), alpha=0.45)
    with atomic_path(output) as temporary:
        figure.savefig(temporary, dpi=80)
    print(f"{case['image']}: {disagreement[case['image']]:.3f}, median {np.median(values):.3f}")


def _segment(image: str) -> dict[str, np.ndarray]:
    """Segment one scan by the bundle's own inference; return the segmentation (``seg``) and the maps by name."""
    with tempfile.TemporaryDirectory() as folder:
        workflow = ConfigWorkflow(
            config_file=[str(BUNDLE / "configs" / name) for name in ("inference.json", "maps.json")],
            workflow_type="infer",
            logging_file=False,
            bundle_root=str(BUNDLE),
            dataset_dir=image,
            output_dir=folder,
        )
        workflow.initialize()
        workflow.run()
        written = Path(folder).glob("*.nii.gz")
        return {case_name(path).split("_")[-1]: _voxels(path) for path in written}


def _voxels(path: str | Path) -> np.ndarray:
    """Return the voxels of a NIfTI file."""
    return np.asarray(cast(SpatialImage, nib.load(path)).dataobj)


def _draw_slice(axes: Axes, plane: np.ndarray, title: str) -> None:
    axes.imshow(np.rot90(plane), cmap="gray")
    axes.set_title(title)
    axes.axis("off")


def _draw_classes(axes: Axes, classes: np.ndarray) -> None:
    for index, colour in zip(range(1, int(classes.max()) + 1), COLOURS, strict=False):
        present = np.ma.masked_not_equal(np.rot90(classes), index)
        axes.imshow(present, cmap=ListedColormap([colour]), alpha=0.5, interpolation="nearest")


if __name__ == "__main__":
    fire.Fire(draw)
