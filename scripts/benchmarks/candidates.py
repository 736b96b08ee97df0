"""The bridges that ``bridge.py`` compares: the package's, and the other methods that were tried."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.optimize import nnls
from torch import nn
from torch.nn import functional

from dbisl.bridge import SegmentationToSDM

BAND = 5
"""Band of the signed distance maps, in voxels."""
TINY = 1e-30
Bridge = Callable[[torch.Tensor], torch.Tensor]
"""Maps probabilities, ``B x K x D x H x W``, to signed distance maps of the same shape, in [-1, 1]."""


class Candidate(nn.Module):
    """Base of the bridges that are not in the package, for isotropic voxels.

    Args:
        h: width of the kernel; its meaning depends on the subclass.
    """

    def __init__(self, h: float) -> None:
        super().__init__()
        self.h = h
        self.offsets = torch.arange(-BAND - 1, BAND + 2)

    def smooth(self, maps: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Convolve ``B x K x D x H x W`` maps along each axis with the same 1D weights."""
        for axis in (2, 3, 4):
            size = maps.shape[axis]
            columns = (torch.arange(size)[:, None] + self.offsets).clamp(0, size - 1)
            matrix = torch.zeros(size, size, dtype=weights.dtype).scatter_add_(1, columns, weights.expand(size, -1))
            maps = torch.tensordot(maps, matrix.to(maps), dims=([axis], [1])).movedim(-1, axis)
        return maps

    def log_ratio(self, own: torch.Tensor) -> torch.Tensor:
        """Return the logarithm of each class's map over the sum of the other classes' maps."""
        others = own.sum(dim=1, keepdim=True) - own if own.shape[1] > 2 else own.flip(1)
        return torch.log(own.clamp(min=TINY)) - torch.log(others.clamp(min=TINY))


class Mixture(Candidate):
    """Bridge by the paper's kernel ``exp(-r / h)``, as a sum of Gaussians; each of them is separable.

    Args:
        h: width of the kernel, in voxels.
        terms: Gaussians to fit; a fit uses some of them.
    """

    def __init__(self, h: float, terms: int) -> None:
        super().__init__(h)
        r = np.linspace(0, math.sqrt(3) * (BAND + 1), 400)
        widths = np.geomspace(0.05, 40, terms)
        kernel = np.exp(-r / h)
        # The fit is to relative errors, since the logarithm becomes a distance.
        basis = np.exp(-(r[:, None] ** 2) / widths) / kernel[:, None]
        weights, _ = nnls(basis, np.ones_like(r))
        self.parts = [(w, s) for w, s in zip(weights, widths, strict=True) if w > 0]

    def forward(self, probabilities: torch.Tensor) -> torch.Tensor:
        """Map probabilities to signed distance maps, as every ``Bridge`` does."""
        sums = [w * self.smooth(probabilities, torch.exp(-(self.offsets.double() ** 2) / s)) for w, s in self.parts]
        return (self.h * self.log_ratio(torch.stack(sums).sum(dim=0)) / BAND).clamp(-1, 1)


class Fourier(Candidate):
    """Bridge by the paper's kernel ``exp(-r / h)``, convolved by a Fourier transform; ``h`` is in voxels."""

    def forward(self, probabilities: torch.Tensor) -> torch.Tensor:
        """Map probabilities to signed distance maps, as every ``Bridge`` does."""
        margin = BAND + 1
        padded = functional.pad(probabilities, [margin] * 6, mode="replicate")
        steps = [torch.fft.fftfreq(size, 1 / size) for size in padded.shape[2:]]
        r = torch.stack(torch.meshgrid(*steps, indexing="ij")).square().sum(dim=0).sqrt()
        kernel = torch.exp(-r / self.h) * (r <= math.sqrt(3) * margin)
        spectrum = torch.fft.rfftn(padded, dim=(2, 3, 4)) * torch.fft.rfftn(kernel)
        own = torch.fft.irfftn(spectrum, s=padded.shape[2:], dim=(2, 3, 4))
        inner = own[:, :, margin:-margin, margin:-margin, margin:-margin]
        return (self.h * self.log_ratio(inner) / BAND).clamp(-1, 1)


class Probit(Candidate):
    """Bridge by ``sigma * probit(G_sigma * P)``, which is exact for flat boundaries; ``h`` is sigma, in voxels.

    Each tail is computed from a blur of its own, since ``1 - own`` would lose its small values.
    """

    def forward(self, probabilities: torch.Tensor) -> torch.Tensor:
        """Map probabilities to signed distance maps, as every ``Bridge`` does."""
        weights = torch.exp(-(self.offsets.double() ** 2) / (2 * self.h**2))
        own = self.smooth(probabilities, weights / weights.sum()).clamp(min=TINY)
        other = self.smooth(1 - probabilities, weights / weights.sum()).clamp(min=TINY)
        sign = torch.where(own < other, 1.0, -1.0)
        return (self.h * sign * torch.special.ndtri(torch.minimum(own, other)) / BAND).clamp(-1, 1)


class LogParabola(Candidate):
    """Bridge by ``-h * log(sum p * exp(-d^2 / h))``, axis by axis in the log domain, which cannot underflow."""

    def forward(self, probabilities: torch.Tensor) -> torch.Tensor:
        """Map probabilities to signed distance maps, as every ``Bridge`` does."""
        both = torch.cat([probabilities, 1 - probabilities], dim=1).clamp(min=1e-38).log()
        for axis in (2, 3, 4):
            margin = [0] * 6
            margin[2 * (4 - axis)] = margin[2 * (4 - axis) + 1] = BAND + 1
            shifted = functional.pad(both, margin, mode="replicate").unfold(axis, 2 * BAND + 3, 1)
            both = torch.logsumexp(shifted - self.offsets.float() ** 2 / self.h, dim=-1)
        own, other = both.chunk(2, dim=1)
        squared, offset = self.h * (own - other), 0.5 + 0.2 * self.h
        return (torch.sign(squared) * (torch.sqrt(squared.abs() + offset**2) - offset) / BAND).clamp(-1, 1)


def _sharpened(bridge: Bridge, sharpness: float) -> Bridge:
    """Return a bridge that raises the probabilities to a power before it applies another bridge."""

    def bridge_of_powers(probabilities: torch.Tensor) -> torch.Tensor:
        powers = probabilities**sharpness
        return bridge(powers / powers.sum(dim=1, keepdim=True))

    return bridge_of_powers


CANDIDATES: dict[str, Callable[[float], Bridge]] = {
    "gaussian (default)": lambda s: SegmentationToSDM(BAND, sharpness=s),
    "gaussian, h=0.5": lambda s: SegmentationToSDM(BAND, h=0.5, sharpness=s),
    "exponential, dense, h=0.35 (paper)": lambda s: SegmentationToSDM(BAND, kernel="exponential", sharpness=s),
    "exponential as 12 Gaussians": lambda s: _sharpened(Mixture(0.35, 12), s),
    "exponential by FFT": lambda s: _sharpened(Fourier(0.35), s),
    "probit of a blur, sigma=1": lambda s: _sharpened(Probit(1.0), s),
    "log-domain parabola, h=0.5": lambda s: _sharpened(LogParabola(0.5), s),
    "log-domain parabola, h=0.25": lambda s: _sharpened(LogParabola(0.25), s),
}
"""The bridges by name; each entry makes a bridge of a given sharpness."""
