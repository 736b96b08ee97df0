"""The bridge between the two tasks: segmentation to signed distance map (SDM), and back.

An SDM here is the physical signed distance to the boundary of a class, positive inside, zero on the voxel faces,
truncated at a band and divided by it: its values lie in [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from monai.utils import convert_to_numpy
from scipy.ndimage import distance_transform_edt
from torch import nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional

CACHED_MATRICES = 64
"""Kernel matrices that one bridge keeps: three for each size of a patch."""


FLOOR = 1e-30
"""Floor inside the logarithm: far above float32's smallest number, so that gradients stay finite."""


def _spacing_per_axis(spacing: float | Sequence[float], spatial_dims: int) -> tuple[float, ...]:
    steps = (float(spacing),) * spatial_dims if isinstance(spacing, (int, float)) else tuple(map(float, spacing))
    if len(steps) != spatial_dims:
        raise ValueError(f"spacing must have one value for each of the {spatial_dims} spatial axes, got {spacing}.")
    if min(steps) <= 0:
        raise ValueError(f"spacing must be positive, got {spacing}.")
    return steps


def _inner_distance(mask: np.ndarray, steps: tuple[float, ...]) -> np.ndarray:
    """Distance of each voxel of ``mask`` to the face of the nearest voxel outside it; 0 elsewhere."""
    if max(steps) - min(steps) < 1e-6 * max(steps):
        return np.maximum(distance_transform_edt(mask, sampling=steps) - steps[0] / 2, 0)
    distance, nearest = distance_transform_edt(mask, sampling=steps, return_indices=True)
    # Half a voxel in the direction of the nearest voxel outside: the radius there of the voxel's inscribed ellipsoid.
    squared = np.zeros_like(distance)
    for axis, (indices, step) in enumerate(zip(nearest, steps, strict=True)):
        own = np.arange(mask.shape[axis]).reshape([-1 if a == axis else 1 for a in range(mask.ndim)])
        squared += ((indices - own) * step**2) ** 2
    half_voxel = 0.5 * np.sqrt(squared) / np.where(mask, distance, 1)
    return np.maximum(distance - half_voxel, 0)


def _signed_distance_of_one(mask: np.ndarray, band: float, steps: tuple[float, ...]) -> np.ndarray:
    """SDM of one boolean mask, ``*spatial``; computed in the box that the band can reach."""
    if not mask.any():
        return np.full(mask.shape, -1, np.float32)
    if mask.all():
        return np.full(mask.shape, 1, np.float32)
    box = []
    for axis, step in enumerate(steps):
        inside = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        margin = math.ceil(band / step) + 1
        box.append(slice(max(inside[0] - margin, 0), inside[-1] + margin + 1))
    part = mask[tuple(box)]
    signed = _inner_distance(part, steps) - _inner_distance(~part, steps)
    sdm = np.full(mask.shape, -1, np.float32)
    sdm[tuple(box)] = np.clip(signed / band, -1, 1)
    return sdm


def signed_distance_map(
    mask: np.ndarray | torch.Tensor, band: float, spacing: float | Sequence[float] = 1.0
) -> torch.Tensor:
    """The exact SDM of binary masks, by scipy's exact Euclidean distance transform: the target of the regression.

    The distance is that to the nearest voxel centre of the other side, less half a voxel in that direction. A mask
    that is empty has -1 everywhere, one that fills its volume +1.

    Args:
        mask: ``... x *spatial``, non-zero inside. ``spacing`` says how many axes are spatial; with one number for
            all axes they are those after batch and channel, or all of them where there are at most three.
        band: distance at which the map is truncated, in the unit of ``spacing`` (millimetres).
        spacing: voxel size by spatial axis, or one for all.

    Returns:
        float32 tensor on the CPU, of the shape of ``mask``, in [-1, 1]; positive inside.

    Raises:
        ValueError: when ``band`` or ``spacing`` is not positive or has the wrong length.
    """
    if band <= 0:
        raise ValueError(f"band must be positive, got {band}.")
    array = convert_to_numpy(mask) != 0
    if isinstance(spacing, (int, float)):
        spatial_dims = array.ndim if array.ndim <= 3 else array.ndim - 2
    else:
        spatial_dims = len(spacing)
    steps = _spacing_per_axis(spacing, spatial_dims)
    leading = array.shape[: array.ndim - spatial_dims]
    flat = array.reshape(-1, *array.shape[len(leading) :])
    maps = np.stack([_signed_distance_of_one(one, band, steps) for one in flat])
    return torch.from_numpy(maps.reshape(array.shape))


class SDMToSegmentation(nn.Module):
    """``T_r2s``: a distance is a confidence, ``softmax_c(slope * R_c)``, 0 on the boundary of two classes being 0.5.

    With two classes, where ``R_background = -R_foreground``, it is the paper's sigmoid ``sigma(2 * slope * R)``.

    Args:
        slope: ``k``, in units of 1 / band.
    """

    def __init__(self, slope: float) -> None:
        super().__init__()
        if slope <= 0:
            raise ValueError(f"slope must be positive, got {slope}.")
        self.slope = slope

    def logits(self, sdm: torch.Tensor) -> torch.Tensor:
        """``B x K x *spatial`` SDM to the logits whose softmax is the segmentation; at least float32."""
        return self.slope * _at_least_float32(sdm)

    def forward(self, sdm: torch.Tensor) -> torch.Tensor:
        """``B x K x *spatial`` SDM to ``B x K x *spatial`` probabilities; at least float32."""
        return torch.softmax(self.logits(sdm), dim=1)


class SegmentationToSDM(nn.Module):
    """``T_s2r``: a differentiable distance transform of soft masks by convolution.

    A kernel that falls with the distance is convolved with the probabilities of each class and of its complement (the
    other classes together); the logarithm of the ratio of the two is a signed distance.

    ``kernel="exponential"`` is the paper's: ``K(r) = exp(-r / h)`` and ``D[P] = -h * log(K * P)``, a dense convolution.
    ``kernel="gaussian"`` is ours: ``K(r) = exp(-r^2 / h)`` is separable, the logarithm is a squared distance. It is
    twice as close to the exact distance on hard masks and its cost is small beside a network's.

    Borders are replicated. Along an axis that is coarser than the finest, offsets are counted from the voxel's face,
    so that the zero of the map stays on the faces for anisotropic spacing too; isotropic spacing is not affected.

    Args:
        band: distance at which the map is truncated, in the unit of ``spacing`` (millimetres).
        spacing: voxel size by spatial axis, or one for all (then of three axes if ``spatial_dims`` is not given).
        kernel: ``"gaussian"`` or ``"exponential"``.
        h: width of the kernel, in voxels of the finest axis (exponential) or in their square (gaussian). Smaller is
            closer to the exact distance on hard masks and less smooth. ``None``: 0.35 (exponential), or the smallest
            from 1 on with which the band stays within float32 (gaussian).
        sharpness: power to which the probabilities are raised (and normalised again) first. Hard masks and ties stay
            what they are, but the faint probabilities of soft masks, which cut every distance short, fade: at 1 a map
            reaches the edge of its band only where the network is certain to one in a million and more.
        spatial_dims: 2 or 3; needed only where ``spacing`` is one number.

    Raises:
        ValueError: on an unknown kernel, a size that is not positive, or an ``h`` so small that the kernel vanishes
            within the band.
    """

    def __init__(
        self,
        band: float,
        spacing: float | Sequence[float] = 1.0,
        kernel: str = "gaussian",
        h: float | None = None,
        sharpness: float = 1.0,
        spatial_dims: int | None = None,
    ) -> None:
        super().__init__()
        if band <= 0:
            raise ValueError(f"band must be positive, got {band}.")
        if kernel not in ("gaussian", "exponential"):
            raise ValueError(f"kernel must be 'gaussian' or 'exponential', got {kernel!r}.")
        if spatial_dims is None:
            spatial_dims = 3 if isinstance(spacing, (int, float)) else len(spacing)
        steps = _spacing_per_axis(spacing, spatial_dims)
        if sharpness < 1:
            raise ValueError(f"sharpness must be at least 1, got {sharpness}.")
        self.kernel = kernel
        self.sharpness = sharpness
        self.voxel = min(steps)
        self.band = band
        self.steps = tuple(step / self.voxel for step in steps)
        reach = band / self.voxel + 0.5
        if h is None:
            h = 0.35 if kernel == "exponential" else max(1.0, reach**2 / 60)
        exponent = reach / h if kernel == "exponential" else reach**2 / h if h > 0 else math.inf
        if h <= 0 or exponent > -math.log(FLOOR):
            raise ValueError(f"h={h} is too small for a band of {band} at a spacing of {spacing}: the kernel vanishes.")
        self.h = h
        # Distance between this centre and the face that the exact map counts from: half a voxel, and a little more
        # because several voxels of the other side add up in the convolution (measured on hard masks).
        self.centre_to_face = 0.5 + 0.2 * h
        self.radii = tuple(math.ceil(reach / step) for step in self.steps)
        self._matrices: dict[tuple[int, int, torch.device, torch.dtype], torch.Tensor] = {}

    def _offsets(self, axis: int) -> torch.Tensor:
        """Distances, in voxels of the finest axis, that the taps of the kernel stand for along ``axis``."""
        taps = torch.arange(-self.radii[axis], self.radii[axis] + 1, dtype=torch.float64).abs()
        return torch.where(taps == 0, 0.0, (taps - 0.5) * self.steps[axis] + 0.5)

    def _matrix(self, axis: int, size: int, like: torch.Tensor) -> torch.Tensor:
        """The kernel along ``axis`` as a banded ``size x size`` matrix, made once for each size, device and dtype."""
        key = (axis, size, like.device, like.dtype)
        if key in self._matrices:
            return self._matrices[key]
        if len(self._matrices) >= CACHED_MATRICES:  # whole scans of ever new sizes
            self._matrices.clear()
        with torch.inference_mode(False):  # a later training may need the same one
            radius = self.radii[axis]
            weights = torch.exp(-(self._offsets(axis) ** 2) / self.h)
            columns = (torch.arange(size)[:, None] + torch.arange(-radius, radius + 1)).clamp(0, size - 1)
            matrix = torch.zeros(size, size, dtype=weights.dtype).scatter_add_(1, columns, weights.expand(size, -1))
            self._matrices[key] = matrix.to(like)
        return self._matrices[key]

    def _convolve_gaussian(self, probabilities: torch.Tensor) -> torch.Tensor:
        """Separable convolution, one product with a banded matrix an axis: fast on every device at patch sizes."""
        shape = probabilities.shape
        answer = probabilities.contiguous()
        for axis, size in enumerate(shape[2:]):
            matrix = self._matrix(axis, size, answer)
            if axis == len(self.radii) - 1:
                answer = answer @ matrix.T
            else:  # from the left, with all the axes behind as columns: nothing is transposed in memory
                answer = (matrix @ answer.view(-1, size, math.prod(shape[3 + axis :]))).view(shape)
        return answer

    def _convolve_exponential(self, probabilities: torch.Tensor) -> torch.Tensor:
        """The paper's dense convolution."""
        offsets = torch.meshgrid(*[self._offsets(axis) for axis in range(len(self.radii))], indexing="ij")
        distance = torch.stack(offsets).square().sum(dim=0).sqrt()
        weight = torch.exp(-distance / self.h).to(probabilities)[None, None]
        single = probabilities.flatten(0, 1)[:, None]
        padding = [radius for radius in reversed(self.radii) for _ in range(2)]
        padded = functional.pad(single, padding, mode="replicate")
        convolution = functional.conv3d if len(self.radii) == 3 else functional.conv2d
        return convolution(padded, weight).view_as(probabilities)

    def forward(self, probabilities: torch.Tensor) -> torch.Tensor:
        """``B x K x *spatial`` probabilities (K at least 2, their sum over K one) to the SDM of each class.

        Computed in float32 (float64 where given so) whatever the autocast dtype.

        Returns:
            ``B x K x *spatial`` in [-1, 1], on the device of the input.

        Raises:
            ValueError: when the input has another number of spatial axes than ``spacing``, or fewer than 2 classes.
        """
        self._check(probabilities)
        with torch.autocast(probabilities.device.type, enabled=False):
            probabilities = _at_least_float32(probabilities)
            if self.sharpness > 1:
                powers = probabilities**self.sharpness
                probabilities = powers / powers.sum(dim=1, keepdim=True)
            return self._signed_distance(probabilities)

    def from_log(self, log_probabilities: torch.Tensor) -> torch.Tensor:
        """:meth:`forward` of the logarithm of probabilities (a log-softmax), at less cost: sharpening is a product."""
        self._check(log_probabilities)
        with torch.autocast(log_probabilities.device.type, enabled=False):
            log_probabilities = _at_least_float32(log_probabilities)
            if self.sharpness > 1:
                return self._signed_distance(torch.softmax(self.sharpness * log_probabilities, dim=1))
            return self._signed_distance(log_probabilities.exp())

    def _check(self, probabilities: torch.Tensor) -> None:
        if probabilities.dim() != 2 + len(self.radii):
            raise ValueError(
                f"expected B x K and {len(self.radii)} spatial axes, got a shape of {list(probabilities.shape)}."
            )
        if probabilities.shape[1] < 2:
            raise ValueError(
                f"expected probabilities of at least 2 classes, background included, got {probabilities.shape[1]}."
            )

    def _signed_distance(self, probabilities: torch.Tensor) -> torch.Tensor:
        in_band = self.voxel / self.band
        if self.kernel == "gaussian":
            own = self._convolve_gaussian(probabilities)
            distance: torch.Tensor = _GaussianDistance.apply(own, self.h, self.centre_to_face, in_band)
            return distance.clamp(-1, 1)
        own = self._convolve_exponential(probabilities)
        log_ratio = torch.log(own + FLOOR) - torch.log(_of_the_others(own) + FLOOR)
        return torch.clamp(in_band * self.h * log_ratio, -1, 1)


class _GaussianDistance(torch.autograd.Function):
    """Signed distance from what a Gaussian kernel gathers of each class, ``B x K x *spatial``, and of the others.

    ``x = h * log(own / others)`` is a signed square of the distance to the centre of the nearest voxel of the other
    side, and ``sign(x) * (sqrt(|x| + offset^2) - offset)`` the distance to its face. Its derivative in ``x`` is
    ``1 / (2 * sqrt(|x| + offset^2))``, also at 0. Written out, because autograd needs three times the passes over the
    volume and as much memory again.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, own: torch.Tensor, h: float, offset: float, scale: float) -> torch.Tensor:
        others = _of_the_others(own).add_(FLOOR)
        own = own + FLOOR
        squared = torch.div(own, others).log_().mul_(h)
        root = squared.abs().add_(offset**2).sqrt_()
        ctx.save_for_backward(own, others, root)
        ctx.factor = h * scale / 2  # type: ignore[attr-defined]
        return squared.div_(root + offset).mul_(scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        own, others, root = ctx.saved_tensors  # type: ignore[attr-defined]
        of_log_ratio = torch.div(gradient, root).mul_(ctx.factor)  # type: ignore[attr-defined]
        to_others = _of_the_others(of_log_ratio / others)
        return of_log_ratio.div_(own).sub_(to_others), None, None, None


def _of_the_others(maps: torch.Tensor) -> torch.Tensor:
    """The sum of the other classes' maps, ``B x K x *spatial``: added up, since a total less one's own would cancel."""
    classes = maps.shape[1]
    others = torch.ones(classes, classes, device=maps.device, dtype=maps.dtype).fill_diagonal_(0)
    return torch.einsum("ck,bk...->bc...", others, maps)


def _at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def normalised_entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """Predictive entropy over ``log K``: ``B x K x *spatial`` to ``B x 1 x *spatial`` in [0, 1]."""
    return torch.special.entr(probabilities).sum(dim=1, keepdim=True) / math.log(probabilities.shape[1])


def harden(probabilities: torch.Tensor) -> torch.Tensor:
    """The most probable class, one-hot: ``B x K x *spatial`` to the same shape."""
    # By maximum and index of a max: argmax alone is ten times slower on the CPU.
    one_hot = torch.zeros_like(probabilities)
    return one_hot.scatter_(1, probabilities.max(dim=1, keepdim=True).indices, 1)
