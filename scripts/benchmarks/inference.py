"""Measure sliding-window inference on one scan: the time of each method, and how well the methods agree.

    python scripts/benchmarks/inference.py --image SCAN.nii.gz --label LABEL.nii.gz --weights bundle/models/model.pt \\
        --config_file "['bundle/configs/inference.json','bundle/configs/datasets/la.yaml']"

prints a Markdown table of these methods, all on one network: the loop of the semi-supervised literature (one window at
a time, a stride of 18 x 18 x 4, equal weights) in float32 and in bfloat16, MONAI's ``SlidingWindowInferer`` with
Gaussian weights, and the config's own inferer at several overlaps. The times are medians, without reading and
resampling the scan.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import fire
import torch
from monai.bundle import ConfigParser
from monai.inferers import SlidingWindowInferer
from monai.metrics import compute_dice
from monai.networks import one_hot

from dbisl.utils import keep_freed_memory

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # scripts import each other from the repository's root
from scripts.benchmarks.common import markdown_table

Network = Callable[[torch.Tensor], Any]
Method = Callable[[torch.Tensor, Network], torch.Tensor]
"""Maps a scan, ``1 x C x *spatial``, and a network to the scan's scores, ``1 x K x *spatial`` or more channels."""
LITERATURE = "literature, float32"
OVERLAPS = (0.25, 0.5, 0.75)


def measure(
    image: str,
    label: str,
    weights: str,
    config_file: str | Sequence[str] = "bundle/configs/inference.json",
    stride: Sequence[int] = (18, 18, 4),
    repeats: int = 3,
) -> list[dict[str, Any]]:
    """Segment one scan by each method.

    Args:
        image: the scan, a NIfTI file.
        label: the label of the scan, a NIfTI file.
        weights: a checkpoint that training wrote.
        config_file: inference config, or a list of it and its override files.
        stride: voxels between the windows of the literature's loop, along the three axes.
        repeats: timed repetitions of each method.

    Returns:
        One row per method, the literature's in float32 first. ``seconds`` is the median time, ``windows`` the number of
        windows that passed through the network; ``dice_literature`` and ``dice_label`` are means over the foreground
        classes.
    """
    keep_freed_memory()  # as the bundle does
    config = ConfigParser()
    config.read_config(config_file)
    config.update({"load_keys": ["image", "label"], "grid_keys": ["image", "label"], "bundle_root": "."})
    scan = config.get_parsed_content("preprocessing")({"image": image, "label": label})
    device = torch.device(config.get_parsed_content("device"))
    network = config.get_parsed_content("network").eval()
    checkpoint = torch.load(weights, map_location=device, weights_only=True)
    network.load_state_dict(checkpoint.get("model", checkpoint))
    classes = config.get_parsed_content("out_channels")

    inputs = scan["image"].as_tensor()[None].to(device)
    methods = _methods(config, stride)
    counts: dict[str, int] = {}
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    segmentations: dict[str, torch.Tensor] = {}
    # The methods run in turns, so that other load on the machine slows all of them alike. The first round warms up.
    for name in itertools.chain.from_iterable(itertools.repeat(methods, repeats + 1)):
        counts[name] = 0

        def count(windows: torch.Tensor, name: str = name) -> Any:
            counts[name] += len(windows)
            return network(windows)

        started = time.perf_counter()
        with torch.inference_mode():
            prediction = methods[name](inputs, count)
            segmentations[name] = prediction[0].argmax(dim=0).cpu()  # waits for the GPU too
        seconds[name].append(time.perf_counter() - started)

    truth = scan["label"].as_tensor()[0].round().long()
    return [
        {
            "name": name,
            "size": " x ".join(str(voxels) for voxels in inputs.shape[2:]),
            "windows": counts[name],
            "seconds": statistics.median(seconds[name][1:]),
            "dice_literature": _dice(segmentations[name], segmentations[LITERATURE], classes),
            "dice_label": _dice(segmentations[name], truth, classes),
        }
        for name in methods
    ]


def _methods(config: ConfigParser, stride: Sequence[int]) -> dict[str, Method]:
    """Return the methods by name, in the order of the table."""
    size = tuple(config["patch_size"])
    # MONAI rounds window * (1 - overlap) down to whole voxels; half a voxel more gives exactly the stride.
    literature = [1 - (step + 0.5) / window for step, window in zip(stride, size, strict=True)]
    methods = {
        LITERATURE: _monai(size, literature, "constant", amp=False),
        "literature, bfloat16": _monai(size, literature, "constant", amp=True),
        "MONAI, bfloat16, overlap 0.5": _monai(size, 0.5, "gaussian", amp=True),
    }
    for overlap in OVERLAPS:
        config.update({"overlap": overlap, "amp": True})
        methods[f"DBiSL, bfloat16, overlap {overlap}"] = config.get_parsed_content("inferer")
    return methods


def _monai(size: tuple[int, ...], overlap: Sequence[float] | float, mode: str, *, amp: bool) -> Method:
    """Return MONAI's sliding window, one window at a time."""

    def infer(inputs: torch.Tensor, network: Network) -> torch.Tensor:
        def probabilities(window: torch.Tensor) -> torch.Tensor:
            with torch.autocast(window.device.type, dtype=torch.bfloat16, enabled=amp):
                return network(window).float()

        sliding = SlidingWindowInferer(size, 1, overlap=overlap, mode=mode)
        return sliding(inputs, probabilities)  # type: ignore[return-value]

    return infer


def _dice(segmentation: torch.Tensor, reference: torch.Tensor, classes: int) -> float:
    """Return the mean Dice of two maps of class indices over the foreground classes that either of them has."""
    masks, reference_masks = (one_hot(labels[None, None], classes) for labels in (segmentation, reference))
    return float(compute_dice(masks, reference_masks, include_background=False).nanmean())


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows of :func:`measure` as Markdown, below a line about the scan and the machine."""
    cells = [
        [
            row["name"],
            str(row["windows"]),
            f"{row['seconds']:.2f}",
            f"{rows[0]['seconds'] / row['seconds']:.1f}",
            f"{row['dice_literature']:.4f}",
            f"{row['dice_label']:.4f}",
        ]
        for row in rows
    ]
    header = ["inference", "windows", "time (s)", "speed-up", "Dice, literature", "Dice, label"]
    title = f"{rows[0]['size']} voxels, {torch.get_num_threads()} threads, torch {torch.__version__}"
    return f"{title}\n\n{markdown_table(header, cells)}"


if __name__ == "__main__":
    fire.Fire(measure, serialize=table)
