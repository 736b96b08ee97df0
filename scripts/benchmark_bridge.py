"""Compare bridges from segmentation to signed distance map: accuracy, gradients, time and memory.

    python scripts/benchmark_bridge.py --labels DATA/hippocampus/labels --output bridge.json

prints Markdown tables and writes the same figures as JSON. Errors are mean absolute errors in voxels against the exact
distance, inside a band of 5 voxels. Beside the two kernels of the package it has the other ways to the same map that
were tried; all of them replicate the border, count distances from the voxel's face and end at the band.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fire
import nibabel as nib
import numpy as np
import torch
from scipy.optimize import nnls
from torch import nn
from torch.nn import functional

from dbisl.bridge import SegmentationToSDM, signed_distance_map
from dbisl.networks import DualTaskVNet

BAND = 5
REACH = BAND + 0.5
"""From a centre to the farthest face that counts, in voxels."""
TINY = 1e-30
Bridge = Callable[[torch.Tensor], torch.Tensor]


class Candidate(nn.Module):
    """A bridge for isotropic voxels that is not in the package; the options are those of the subclasses."""

    def __init__(self, h: float) -> None:
        super().__init__()
        self.h = h
        self.offsets = torch.arange(-BAND - 1, BAND + 2)

    def smooth(self, maps: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Separable convolution of ``B x K x D x H x W`` with the same 1D weights along each axis."""
        for axis in (2, 3, 4):
            size = maps.shape[axis]
            columns = (torch.arange(size)[:, None] + self.offsets).clamp(0, size - 1)
            matrix = torch.zeros(size, size, dtype=weights.dtype).scatter_add_(1, columns, weights.expand(size, -1))
            maps = torch.tensordot(maps, matrix.to(maps), dims=([axis], [1])).movedim(-1, axis)
        return maps

    def ratio(self, own: torch.Tensor) -> torch.Tensor:
        others = own.sum(dim=1, keepdim=True) - own if own.shape[1] > 2 else own.flip(1)
        return torch.log(own.clamp(min=TINY)) - torch.log(others.clamp(min=TINY))


class Mixture(Candidate):
    """The paper's ``exp(-r / h)`` as a sum of Gaussians, each separable."""

    def __init__(self, h: float, terms: int) -> None:
        super().__init__(h)
        r = np.linspace(0, math.sqrt(3) * (BAND + 1), 400)
        widths = np.geomspace(0.05, 40, terms)
        kernel = np.exp(-r / h)
        # Relative errors count: it is the logarithm that becomes a distance.
        basis = np.exp(-(r[:, None] ** 2) / widths) / kernel[:, None]
        weights, _ = nnls(basis, np.ones_like(r))
        self.parts = [(w, s) for w, s in zip(weights, widths, strict=True) if w > 0]

    def forward(self, probabilities: torch.Tensor) -> torch.Tensor:
        sums = [w * self.smooth(probabilities, torch.exp(-(self.offsets.double() ** 2) / s)) for w, s in self.parts]
        return (self.h * self.ratio(torch.stack(sums).sum(dim=0)) / BAND).clamp(-1, 1)


class Fourier(Candidate):
    """The paper's kernel by a Fourier transform."""

    def forward(self, probabilities: torch.Tensor) -> torch.Tensor:
        margin = BAND + 1
        padded = functional.pad(probabilities, [margin] * 6, mode="replicate")
        steps = [torch.fft.fftfreq(size, 1 / size) for size in padded.shape[2:]]
        r = torch.stack(torch.meshgrid(*steps, indexing="ij")).square().sum(dim=0).sqrt()
        kernel = torch.exp(-r / self.h) * (r <= math.sqrt(3) * margin)
        spectrum = torch.fft.rfftn(padded, dim=(2, 3, 4)) * torch.fft.rfftn(kernel)
        own = torch.fft.irfftn(spectrum, s=padded.shape[2:], dim=(2, 3, 4))
        inner = own[:, :, margin:-margin, margin:-margin, margin:-margin]
        return (self.h * self.ratio(inner) / BAND).clamp(-1, 1)


class Probit(Candidate):
    """``sigma * probit(G_sigma * P)``, exact for flat boundaries; ``h`` is sigma. Each tail comes from its own blur."""

    def forward(self, probabilities: torch.Tensor) -> torch.Tensor:
        weights = torch.exp(-(self.offsets.double() ** 2) / (2 * self.h**2))
        own = self.smooth(probabilities, weights / weights.sum()).clamp(min=TINY)
        other = self.smooth(1 - probabilities, weights / weights.sum()).clamp(min=TINY)
        sign = torch.where(own < other, 1.0, -1.0)
        return (self.h * sign * torch.special.ndtri(torch.minimum(own, other)) / BAND).clamp(-1, 1)


class LogParabola(Candidate):
    """``-h * log(sum p * exp(-d^2 / h))`` axis by axis in the log domain, which cannot underflow."""

    def forward(self, probabilities: torch.Tensor) -> torch.Tensor:
        both = torch.cat([probabilities, 1 - probabilities], dim=1).clamp(min=1e-38).log()
        for axis in (2, 3, 4):
            margin = [0] * 6
            margin[2 * (4 - axis)] = margin[2 * (4 - axis) + 1] = BAND + 1
            shifted = functional.pad(both, margin, mode="replicate").unfold(axis, 2 * BAND + 3, 1)
            both = torch.logsumexp(shifted - self.offsets.float() ** 2 / self.h, dim=-1)
        own, other = both.chunk(2, dim=1)
        squared, offset = self.h * (own - other), 0.5 + 0.2 * self.h
        return (torch.sign(squared) * (torch.sqrt(squared.abs() + offset**2) - offset) / BAND).clamp(-1, 1)


CANDIDATES: dict[str, Callable[[float], Bridge]] = {
    "gaussian (default)": lambda s: SegmentationToSDM(BAND, sharpness=s),
    "gaussian, h=0.5": lambda s: SegmentationToSDM(BAND, h=0.5, sharpness=s),
    "exponential, dense, h=0.35 (paper)": lambda s: SegmentationToSDM(BAND, kernel="exponential", sharpness=s),
    "exponential as 12 Gaussians": lambda s: _sharp(Mixture(0.35, 12), s),
    "exponential by FFT": lambda s: _sharp(Fourier(0.35), s),
    "probit of a blur, sigma=1": lambda s: _sharp(Probit(1.0), s),
    "log-domain parabola, h=0.5": lambda s: _sharp(LogParabola(0.5), s),
    "log-domain parabola, h=0.25": lambda s: _sharp(LogParabola(0.25), s),
}

SHARPENED = [(0.5, 1.0), (0.5, 4.0), (0.5, 16.0), (1.0, 1.0), (1.0, 2.0), (1.0, 4.0), (1.0, 8.0)]
"""Widths and sharpnesses of the Gaussian bridge to compare."""


def _sharp(bridge: Bridge, sharpness: float) -> Bridge:
    def sharpened(probabilities: torch.Tensor) -> torch.Tensor:
        powers = probabilities**sharpness
        return bridge(powers / powers.sum(dim=1, keepdim=True))

    return sharpened


def benchmark(
    labels: str,
    output: str | None = None,
    cases: int = 10,
    repeats: int = 5,
    patch_size: Sequence[int] = (40, 56, 40),
) -> None:
    """Print the tables.

    Args:
        labels: folder of NIfTI labels, taken as voxels of size 1.
        output: JSON file for the same figures.
        cases: how many labels, in the order of their names.
        repeats: timed repetitions of each bridge, all in turns.
        patch_size: of the 4 patches with 3 classes that are timed.
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
            "near": _mean([_error(bridge, mask, mask, 0, 1.5) for mask in masks]),
            "far": _mean([_error(bridge, mask, mask, 1.5, BAND) for mask in masks]),
            **{f"thin, {width} voxels": _thin(bridge, width) for width in (1, 2, 3)},
            **{
                f"{kind}, sharpness {sharpness}": _mean(
                    [_error(make(float(sharpness)), soft(mask), mask, 0, BAND) for mask in masks]
                )
                for kind, soft in (("blurred", _blurred), ("faint", _faint))
                for sharpness in (1, 4)
            },
            "band with a gradient (%)": 100 * _mean([_gradient(make(4.0), mask) for mask in masks]),
            **costs[name],
        }
    sharpened = {f"h={h:g}, sharpness {power:g}": _sharpened(h, power, masks) for h, power in SHARPENED}
    print(f"{len(paths)} labels of {labels}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    _print(rows)
    _print(sharpened)
    print()
    _print({name: {"network's ms": value} for name, value in costs.items() if name.startswith("network")})
    if output is not None:
        Path(output).write_text(json.dumps({"bridges": rows, "sharpened": sharpened, "costs": costs}, indent=4) + "\n")


# ---- what is measured ----


def _one_hot(path: Path) -> torch.Tensor:
    label = np.asarray(nib.nifti1.load(path).dataobj).astype(np.int64)
    return functional.one_hot(torch.from_numpy(label)).movedim(-1, 0)[None].float()


def _exact(mask: torch.Tensor) -> torch.Tensor:
    """``1 x K x D x H x W`` one-hot to the exact map of each class, ``K x D x H x W``."""
    return signed_distance_map(mask[0], BAND, (1, 1, 1))


def _error(bridge: Bridge, probabilities: torch.Tensor, mask: torch.Tensor, low: float, high: float) -> float:
    """Mean absolute error in voxels where the exact distance of ``mask`` is between ``low`` and ``high``."""
    exact = _exact(mask)
    chosen = (exact.abs() * BAND >= low) & (exact.abs() * BAND < high)
    with torch.no_grad():
        answer = bridge(probabilities)[0]
    return float((answer - exact).abs()[chosen].mean() * BAND)


def _thin(bridge: Bridge, width: int) -> float:
    """Error on a plate and a tube of so many voxels."""
    errors = []
    for axes in (1, 2):
        inside = torch.zeros(24, 24, 24, dtype=torch.bool)
        inside[(slice(11, 11 + width),) * axes] = True
        mask = torch.stack([~inside, inside]).float()[None]
        errors.append(_error(bridge, mask, mask, 0, BAND))
    return _mean(errors)


def _sharpened(h: float, sharpness: float, masks: list[torch.Tensor]) -> dict[str, float]:
    """Errors over the whole band, and how much a logit moves a distance in a network of more and more confidence."""
    bridge = SegmentationToSDM(BAND, h=h, sharpness=sharpness)
    softened = {"hard": lambda mask: mask, "blurred": _blurred, "faint": _faint}
    row = {
        kind: _mean([_error(bridge, soft(mask), mask, 0, BAND) for mask in masks]) for kind, soft in softened.items()
    }
    for confidence in (1, 2, 4):
        row[f"gradient, {confidence} a voxel"] = statistics.median(
            [_logit_gradient(bridge, mask, confidence) for mask in masks]
        )
    return row


def _logit_gradient(bridge: SegmentationToSDM, mask: torch.Tensor, confidence: float) -> float:
    """Median, over voxels of the band, of the largest derivative of a voxel's distance by any logit.

    The logits are ``confidence`` times the signed distance in voxels.
    """
    logits = (confidence * BAND * _exact(mask)[None]).requires_grad_()
    answer = bridge.from_log(torch.log_softmax(logits, dim=1))
    in_band = (_exact(mask).abs() < 1).nonzero()
    gradients = []
    for channel, *voxel in in_band[:: max(len(in_band) // 50, 1)].tolist():
        (gradient,) = torch.autograd.grad(answer[0, channel][tuple(voxel)], logits, retain_graph=True)
        gradients.append(float(gradient.abs().max()))
    return statistics.median(gradients)


def _blurred(mask: torch.Tensor) -> torch.Tensor:
    """Sigmoids of the signed distance, one voxel wide: an unsure network, right about where the boundary lies."""
    return torch.softmax(_exact(mask)[None] * BAND, dim=1)


def _faint(mask: torch.Tensor) -> torch.Tensor:
    """A network that is never surer than 0.998."""
    return 0.998 * mask + 0.002 / mask.shape[1]


def _gradient(bridge: Bridge, mask: torch.Tensor) -> float:
    """Part of the band's voxels whose value moves some probability: the gradient is finite and not negligible."""
    probabilities = _blurred(mask).requires_grad_()
    answer = bridge(probabilities)
    in_band = (_exact(mask).abs() < 1).nonzero()
    picked = in_band[:: max(len(in_band) // 50, 1)]
    moved = 0
    for channel, *voxel in picked.tolist():
        (gradient,) = torch.autograd.grad(answer[0, channel][tuple(voxel)], probabilities, retain_graph=True)
        moved += bool(gradient.isfinite().all() and gradient.abs().max() > 1e-6)
    return moved / len(picked)


def _costs(repeats: int, patch_size: Sequence[int]) -> dict[str, dict[str, float]]:
    """Forward and backward at the size of a training batch: milliseconds, and megabytes kept for the backward pass."""
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

            if turn == 0:  # warms up, too
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


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _print(rows: dict[str, dict[str, Any]]) -> None:
    columns = list(next(iter(rows.values())))
    print(f"\n| | {' | '.join(columns)} |\n|{' --- |' * (len(columns) + 1)}")
    for name, row in rows.items():
        values = [value["time (ms)"] if isinstance(value, dict) else value for value in row.values()]
        print(f"| {name} | {' | '.join(f'{value:.0f}' if value >= 100 else f'{value:.2g}' for value in values)} |")


if __name__ == "__main__":
    fire.Fire(benchmark)
