"""Compare bridges from segmentation to signed distance map: accuracy, gradients, time and memory.

    python scripts/benchmarks/bridge.py --labels DATA/hippocampus/labels --output bridge.json

prints Markdown tables and writes the same figures as JSON. Errors are mean absolute errors in voxels against the exact
distance, inside a band of 5 voxels. The tables show the two kernels of the package and the other methods that were
tried. All of them replicate the border, measure distances from the face of a voxel, and end at the band.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import fire
import nibabel as nib
import numpy as np
import torch
from torch.nn import functional

from dbisl.bridge import SegmentationToSDM, signed_distance_map
from dbisl.networks import DualTaskVNet

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # scripts import each other from the repository's root
from scripts.benchmarks.candidates import BAND, CANDIDATES, Bridge
from scripts.benchmarks.common import markdown_table, write_json

SHARPENED = [(0.5, 1.0), (0.5, 4.0), (0.5, 16.0), (1.0, 1.0), (1.0, 2.0), (1.0, 4.0), (1.0, 8.0)]
"""Widths and sharpnesses of the Gaussian bridge to compare."""


def benchmark(
    labels: str,
    output: str | None = None,
    cases: int = 10,
    repeats: int = 5,
    patch_size: Sequence[int] = (40, 56, 40),
) -> None:
    """Print the tables.

    Args:
        labels: folder of NIfTI labels; their voxels count as having size 1.
        output: JSON file for the same figures.
        cases: number of labels to use, in the order of their names.
        repeats: timed repetitions of each bridge; the bridges run in turns.
        patch_size: voxels of the timed patches along their three axes; a batch has 4 patches and 3 classes.

    Raises:
        SystemExit: when the folder has no label.
    """
    paths = sorted(Path(labels).glob("*.nii.gz"))[:cases]
    if not paths:
        raise SystemExit(f"{labels} holds no .nii.gz files: expected a folder of labels.")
    masks = [_one_hot(path) for path in paths]
    rows: dict[str, dict[str, float]] = {}
    costs = _costs(repeats, patch_size)
    for name, make in CANDIDATES.items():
        bridge = make(1.0)
        rows[name] = {
            "near": statistics.fmean(_error(bridge, mask, mask, 0, 1.5) for mask in masks),
            "far": statistics.fmean(_error(bridge, mask, mask, 1.5, BAND) for mask in masks),
            **{f"thin, {width} voxels": _thin(bridge, width) for width in (1, 2, 3)},
            **{
                f"{kind}, sharpness {sharpness}": statistics.fmean(
                    _error(make(float(sharpness)), soft(mask), mask, 0, BAND) for mask in masks
                )
                for kind, soft in (("blurred", _blurred), ("faint", _faint))
                for sharpness in (1, 4)
            },
            "band with a gradient (%)": 100 * statistics.fmean(_moved_fraction(make(4.0), mask) for mask in masks),
            **costs[name],
        }
    sharpened = {f"h={h:g}, sharpness {power:g}": _sharpened(h, power, masks) for h, power in SHARPENED}
    print(f"{len(paths)} labels of {labels}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    networks = {name: row for name, row in costs.items() if name.startswith("network")}
    for part in (rows, sharpened, {name: {"network's ms": row["time (ms)"]} for name, row in networks.items()}):
        print(f"\n{_table(part)}")
    if output is not None:
        write_json(Path(output), {"bridges": rows, "sharpened": sharpened, "costs": costs})


def _one_hot(path: Path) -> torch.Tensor:
    """Read a label as ``1 x K x D x H x W``."""
    label = np.asarray(nib.nifti1.load(path).dataobj).astype(np.int64)
    return functional.one_hot(torch.from_numpy(label)).movedim(-1, 0)[None].float()


def _exact(mask: torch.Tensor) -> torch.Tensor:
    """Return the exact map of each class, ``K x D x H x W``, of a one-hot mask, ``1 x K x D x H x W``."""
    return signed_distance_map(mask[0], BAND, (1, 1, 1))


def _error(bridge: Bridge, probabilities: torch.Tensor, mask: torch.Tensor, low: float, high: float) -> float:
    """Return the mean absolute error where the exact distance of ``mask`` is in [low, high); all in voxels."""
    exact = _exact(mask)
    chosen = (exact.abs() * BAND >= low) & (exact.abs() * BAND < high)
    with torch.no_grad():
        sdm = bridge(probabilities)[0]
    return float((sdm - exact).abs()[chosen].mean() * BAND)


def _thin(bridge: Bridge, width: int) -> float:
    """Return the mean error on a plate and on a tube that are ``width`` voxels thick."""
    errors = []
    for axes in (1, 2):
        inside = torch.zeros(24, 24, 24, dtype=torch.bool)
        inside[(slice(11, 11 + width),) * axes] = True
        mask = torch.stack([~inside, inside]).float()[None]
        errors.append(_error(bridge, mask, mask, 0, BAND))
    return statistics.fmean(errors)


def _sharpened(h: float, sharpness: float, masks: list[torch.Tensor]) -> dict[str, float]:
    """Measure a Gaussian bridge: the errors over the whole band, and the gradients at three levels of confidence."""
    bridge = SegmentationToSDM(BAND, h=h, sharpness=sharpness)
    softened = {"hard": lambda mask: mask, "blurred": _blurred, "faint": _faint}
    row = {
        kind: statistics.fmean(_error(bridge, soft(mask), mask, 0, BAND) for mask in masks)
        for kind, soft in softened.items()
    }
    for confidence in (1, 2, 4):
        row[f"gradient, {confidence} a voxel"] = statistics.median(
            _logit_gradient(bridge, mask, confidence) for mask in masks
        )
    return row


def _logit_gradient(bridge: SegmentationToSDM, mask: torch.Tensor, confidence: float) -> float:
    """Return how much a logit moves a distance: the median over the band of the largest derivative by any logit.

    The logits are ``confidence`` times the signed distance in voxels.
    """
    logits = (confidence * BAND * _exact(mask)[None]).requires_grad_()
    sdm = bridge.from_log(torch.log_softmax(logits, dim=1))
    return statistics.median(float(gradient.abs().max()) for gradient in _band_gradients(sdm, logits, mask))


def _band_gradients(sdm: torch.Tensor, inputs: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
    """Return the gradients by ``inputs`` of about 50 values of ``sdm``, spread evenly over the band of ``mask``."""
    in_band = (_exact(mask).abs() < 1).nonzero()
    return [
        torch.autograd.grad(sdm[0, channel][tuple(voxel)], inputs, retain_graph=True)[0]
        for channel, *voxel in in_band[:: max(len(in_band) // 50, 1)].tolist()
    ]


def _blurred(mask: torch.Tensor) -> torch.Tensor:
    """Imitate an uncertain network that knows where the boundary is: sigmoids of the distance, one voxel wide."""
    return torch.softmax(_exact(mask)[None] * BAND, dim=1)


def _faint(mask: torch.Tensor) -> torch.Tensor:
    """Imitate a network whose probabilities never exceed 0.998."""
    return 0.998 * mask + 0.002 / mask.shape[1]


def _moved_fraction(bridge: Bridge, mask: torch.Tensor) -> float:
    """Return the fraction of the band where the gradient by the probabilities is finite and not negligible."""
    probabilities = _blurred(mask).requires_grad_()
    gradients = _band_gradients(bridge(probabilities), probabilities, mask)
    return statistics.fmean(bool(one.isfinite().all() and one.abs().max() > 1e-6) for one in gradients)


def _costs(repeats: int, patch_size: Sequence[int]) -> dict[str, dict[str, float]]:
    """Measure forward and backward on a training batch: milliseconds, and megabytes kept for the backward pass."""
    torch.manual_seed(0)
    probabilities = torch.softmax(3 * torch.randn(4, 3, *patch_size), dim=1).requires_grad_()
    network = DualTaskVNet(out_channels=3, levels=4).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    image = torch.randn(4, 1, *patch_size)

    def through_network(amp: bool) -> Callable[[], torch.Tensor]:
        def run() -> torch.Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
                logits, sdm = network(image)
            return logits.float().sum() + sdm.float().sum()

        return run

    def through_bridge(bridge: Bridge) -> Callable[[], torch.Tensor]:
        return lambda: bridge(probabilities).sum()

    runs = {name: through_bridge(make(1.0)) for name, make in CANDIDATES.items()}
    runs |= {"network, float32": through_network(False), "network, bfloat16": through_network(True)}
    kept: dict[str, int] = {}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            storages: dict[int, int] = {}

            def pack(tensor: torch.Tensor, storages: dict[int, int] = storages) -> torch.Tensor:
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
                return tensor

            if turn == 0:  # it also warms up
                with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                    run().backward()
                kept[name] = sum(storages.values())
                continue
            started = time.perf_counter()
            run().backward()
            seconds[name].append(time.perf_counter() - started)
    return {
        name: {"time (ms)": 1000 * statistics.median(values), "kept (MB)": kept[name] / 1e6}
        for name, values in seconds.items()
    }


def _table(rows: dict[str, dict[str, float]]) -> str:
    """Return rows of numbers as Markdown."""
    cells = [
        [name, *(f"{value:.0f}" if value >= 100 else f"{value:.2g}" for value in row.values())]
        for name, row in rows.items()
    ]
    return markdown_table(["", *next(iter(rows.values()))], cells)


if __name__ == "__main__":
    fire.Fire(benchmark)
