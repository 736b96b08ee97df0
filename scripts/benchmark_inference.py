"""Measure sliding-window inference on one scan: time, and how well the ways to do it agree.

    python scripts/benchmark_inference.py --image SCAN.nii.gz --label LABEL.nii.gz --weights bundle/models/model.pt \\
        --config_file "['bundle/configs/inference.json','bundle/configs/datasets/la.yaml']"

prints a Markdown table: the loop of the semi-supervised literature (one window at a time, a stride of 18 x 18 x 4, all
windows weigh the same) in float32 and in bfloat16, MONAI's ``SlidingWindowInferer`` with Gaussian weights, and the
config's own inferer at several overlaps, side by side in one run on one network. The times are medians and leave out
reading and resampling the scan.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import fire
import torch
from monai.bundle import ConfigParser
from monai.inferers import SlidingWindowInferer
from monai.metrics import compute_dice
from monai.networks import one_hot

from dbisl.utils import keep_freed_memory

Network = Callable[[torch.Tensor], Any]
Way = Callable[[torch.Tensor, Network], torch.Tensor]
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
    """Segment one scan in each way.

    Args:
        image: the scan, NIfTI.
        label: its label, NIfTI.
        weights: a checkpoint that training wrote.
        config_file: inference config, or a list of it and what changes it.
        stride: voxels between the windows of the literature's loop.
        repeats: timed repetitions of each way.

    Returns:
        One row a way, the literature's in float32 first. ``seconds`` is the median, ``windows`` what passed through the
        network; ``dice_literature`` and ``dice_label`` are means over the classes but the background.
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
    ways = _ways(config, stride)
    counts: dict[str, int] = {}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    answers: dict[str, torch.Tensor] = {}
    # All the ways in turn, again and again: what else the machine does touches each alike. The first round warms up.
    for name in itertools.chain.from_iterable(itertools.repeat(ways, repeats + 1)):
        counts[name] = 0

        def count(windows: torch.Tensor, name: str = name) -> Any:
            counts[name] += len(windows)
            return network(windows)

        started = time.perf_counter()
        with torch.inference_mode():
            answer = ways[name](inputs, count)
            answers[name] = answer[0].argmax(dim=0).cpu()  # waits for the GPU too
        seconds[name].append(time.perf_counter() - started)

    truth = scan["label"].as_tensor()[0].round().long()
    return [
        {
            "name": name,
            "size": " x ".join(str(voxels) for voxels in inputs.shape[2:]),
            "windows": counts[name],
            "seconds": statistics.median(seconds[name][1:]),
            "dice_literature": _dice(answers[name], answers[LITERATURE], classes),
            "dice_label": _dice(answers[name], truth, classes),
        }
        for name in ways
    ]


def _ways(config: ConfigParser, stride: Sequence[int]) -> dict[str, Way]:
    size = tuple(config["patch_size"])
    # MONAI cuts int(window * (1 - overlap)) down to whole voxels: half a voxel more gives the stride itself.
    literature = [1 - (step + 0.5) / window for step, window in zip(stride, size, strict=True)]
    ways = {
        LITERATURE: _monai(size, literature, "constant", amp=False),
        "literature, bfloat16": _monai(size, literature, "constant", amp=True),
        "MONAI, bfloat16, overlap 0.5": _monai(size, 0.5, "gaussian", amp=True),
    }
    for overlap in OVERLAPS:
        config.update({"overlap": overlap, "amp": True})
        ways[f"DBiSL, bfloat16, overlap {overlap}"] = config.get_parsed_content("inferer")
    return ways


def _monai(size: tuple[int, ...], overlap: Sequence[float] | float, mode: str, *, amp: bool) -> Way:
    """One window at a time, on MONAI's own grid."""

    def infer(inputs: torch.Tensor, network: Network) -> torch.Tensor:
        def probabilities(window: torch.Tensor) -> torch.Tensor:
            with torch.autocast(window.device.type, dtype=torch.bfloat16, enabled=amp):
                return network(window).float()

        sliding = SlidingWindowInferer(size, 1, overlap=overlap, mode=mode)
        return sliding(inputs, probabilities)  # type: ignore[return-value]

    return infer


def _dice(answer: torch.Tensor, reference: torch.Tensor, classes: int) -> float:
    answer, reference = (one_hot(labels[None, None], classes) for labels in (answer, reference))
    return float(compute_dice(answer, reference, include_background=False).nanmean())


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of :func:`measure` as Markdown."""
    lines = [
        f"{rows[0]['size']} voxels, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "",
        "| inference | windows | time (s) | speed-up | Dice, literature | Dice, label |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        lines.append(
            f"| {row['name']} | {row['windows']} | {row['seconds']:.2f} | {rows[0]['seconds'] / row['seconds']:.1f} "
            f"| {row['dice_literature']:.4f} | {row['dice_label']:.4f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    fire.Fire(measure, serialize=table)
