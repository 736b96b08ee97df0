"""The bridge between the two tasks: segmentation to signed distance map (SDM), and back.

Each formula of the method stands here once; losses, networks, inferers and transforms call it.

Notation: ``P`` is the segmentation, the probabilities of ``K`` classes with the background. ``R`` is the SDM of each
class: the physical signed distance to its boundary, positive inside, zero on the voxel faces, truncated at a band and
divided by it, so that its values lie in [-1, 1]. Both are ``B x K x *spatial``.
"""

# No `from __future__ import annotations` here: TorchScript cannot read a NamedTuple whose annotations are strings.

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from monai.networks.utils import one_hot
from monai.utils import convert_to_numpy
from scipy.ndimage import distance_transform_edt
from torch import nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional

CACHED_MATRICES = 64
"""Kernel matrices that one bridge keeps: three for each patch size."""
FLOOR = 1e-30
"""Floor inside the logarithm: far above float32's smallest number, so that gradients stay finite."""


class DualTaskOutput(NamedTuple):
    """The output of a network for both tasks.

    Attributes:
        logits: of the segmentation, ``B x K x *spatial``; their softmax is ``P``.
        sdm: ``R``, ``B x K x *spatial``; None where the network has a single task.
    """

    logits: torch.Tensor
    sdm: torch.Tensor | None = None

    @classmethod
    def of(cls, output: torch.Tensor | tuple[torch.Tensor, torch.Tensor | None]) -> "DualTaskOutput":
        """Name the parts of a network's output; a single tensor holds the logits."""
        return cls(output) if isinstance(output, torch.Tensor) else cls(*output)


def fuse_tasks(p: torch.Tensor, p_r: torch.Tensor) -> torch.Tensor:
    """Return the fused prediction of both tasks, ``(P + P_r) / 2``, in the shape of its arguments."""
    return (p + p_r) / 2


def normalised_entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """Return the predictive entropy over ``log K``: ``B x K x *spatial`` to ``B x 1 x *spatial`` in [0, 1]."""
    return torch.special.entr(probabilities).sum(dim=1, keepdim=True) / math.log(probabilities.shape[1])


def disagreement(p: torch.Tensor, p_r: torch.Tensor) -> torch.Tensor:
    """Return the Jensen-Shannon divergence of the two tasks over ``log K``.

    It is the part of the fused prediction's entropy that comes from the tasks disagreeing.

    Args:
        p: ``P``, ``B x K x *spatial``.
        p_r: ``P_r``, in the same shape.

    Returns:
        ``B x 1 x *spatial`` in [0, 1].
    """
    own = (normalised_entropy(p) + normalised_entropy(p_r)) / 2
    return (normalised_entropy(fuse_tasks(p, p_r)) - own).clamp(0, 1)


def harden(probabilities: torch.Tensor) -> torch.Tensor:
    """Return the most probable class, one-hot: ``B x K x *spatial`` to the same shape."""
    # The index of a maximum: argmax alone is ten times slower on the CPU.
    return one_hot(probabilities.max(dim=1, keepdim=True).indices, probabilities.shape[1], dtype=probabilities.dtype)


def signed_distance_map(
    mask: np.ndarray | torch.Tensor, band: float, spacing: float | Sequence[float] = 1.0
) -> torch.Tensor:
    """Return the exact SDM of binary masks: the target of the regression.

    Scipy's exact Euclidean distance transform gives the distance to the nearest voxel centre on the other side; half a
    voxel in that direction is subtracted. An empty mask has -1 everywhere, one that fills its volume +1.

    Args:
        mask: ``... x *spatial``, non-zero inside. ``spacing`` says how many axes are spatial; if it is one number, they
            are the axes after batch and channel, or all axes of a mask with three or fewer.
        band: distance at which the map is truncated, in the unit of ``spacing`` (millimetres).
        spacing: voxel size by spatial axis, or one for all.

    Returns:
        float32 tensor on the CPU, in the shape of ``mask``, in [-1, 1]; positive inside.

    Raises:
        ValueError: when ``band`` or ``spacing`` is not positive or has the wrong length.

    Example:
        >>> signed_distance_map(np.array([0, 0, 1, 1, 1, 0]), band=2.0)
        tensor([-0.7500, -0.2500,  0.2500,  0.7500,  0.2500, -0.2500])
    """
    if band <= 0:
        raise ValueError(f"band must be positive, got {band}.")
    array = convert_to_numpy(mask) != 0
    if isinstance(spacing, (int, float)):
        spatial_dims = array.ndim if array.ndim <= 3 else array.ndim - 2
    else:
        spatial_dims = len(spacing)
    steps = _spacing_per_axis(spacing, spatial_dims)
    flat = array.reshape(-1, *array.shape[array.ndim - spatial_dims :])
    maps = np.stack([_sdm_of_mask(one, band, steps) for one in flat])
    return torch.from_numpy(maps.reshape(array.shape))


def _spacing_per_axis(spacing: float | Sequence[float], spatial_dims: int) -> tuple[float, ...]:
    steps = (float(spacing),) * spatial_dims if isinstance(spacing, (int, float)) else tuple(map(float, spacing))
    if len(steps) != spatial_dims:
        raise ValueError(f"spacing must have one value for each of the {spatial_dims} spatial axes, got {spacing}.")
    if min(steps) <= 0:
        raise ValueError(f"spacing must be positive, got {spacing}.")
    return steps


def _sdm_of_mask(mask: np.ndarray, band: float, steps: tuple[float, ...]) -> np.ndarray:
    """SDM of one boolean mask, ``*spatial``; computed only in the box that the band can reach."""
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


def _inner_distance(mask: np.ndarray, steps: tuple[float, ...]) -> np.ndarray:
    """Distance from each voxel of ``mask`` to the face of the nearest voxel outside it; 0 elsewhere."""
    if max(steps) - min(steps) < 1e-6 * max(steps):
        return np.maximum(distance_transform_edt(mask, sampling=steps) - steps[0] / 2, 0)
    distance, nearest = distance_transform_edt(mask, sampling=steps, return_indices=True)
    # Half a voxel towards the nearest voxel outside: the radius of the voxel's inscribed ellipsoid in that direction.
    squared = np.zeros_like(distance)
    for axis, (indices, step) in enumerate(zip(nearest, steps, strict=True)):
        own = np.arange(mask.shape[axis]).reshape([-1 if a == axis else 1 for a in range(mask.ndim)])
        squared += ((indices - own) * step**2) ** 2
    half_voxel = 0.5 * np.sqrt(squared) / np.where(mask, distance, 1)
    return np.maximum(distance - half_voxel, 0)


class SDMToSegmentation(nn.Module):
    """``T_r2s``: reads a distance as a confidence, ``P_r = softmax_c(slope * R_c)``.

    On the boundary of two classes the probability is 0.5. With two classes, where ``R_background = -R_foreground``, it
    is the paper's sigmoid, ``sigma(2 * slope * R)``.

    Args:
        slope: ``k``, in units of 1 / band.

    Raises:
        ValueError: when ``slope`` is not positive.

    Example:
        >>> SDMToSegmentation(slope=10.0)(torch.tensor([[[-0.1, 0.0], [0.1, 0.0]]]))
        tensor([[[0.1192, 0.5000],
                 [0.8808, 0.5000]]])
    """

    def __init__(self, slope: float) -> None:
        super().__init__()
        if slope <= 0:
            raise ValueError(f"slope must be positive, got {slope}.")
        self.slope = slope

    def logits(self, sdm: torch.Tensor) -> torch.Tensor:
        """Return the logits whose softmax is ``P_r``: ``B x K x *spatial`` to the same shape, at least float32."""
        return self.slope * _at_least_float32(sdm)

    def forward(self, sdm: torch.Tensor) -> torch.Tensor:
        """Turn ``R`` into ``P_r``: ``B x K x *spatial`` to the same shape, at least float32."""
        return torch.softmax(self.logits(sdm), dim=1)


class SegmentationToSDM(nn.Module):
    """``T_s2r``: a differentiable distance transform of soft masks by convolution.

    A kernel that falls with the distance is convolved with the probabilities of each class and of its complement (the
    other classes together); the logarithm of the ratio is a signed distance.

    ``kernel="exponential"`` is the paper's: ``K(r) = exp(-r / h)`` and ``D[P] = -h * log(K * P)``, a dense convolution.
    ``kernel="gaussian"`` is ours: ``K(r) = exp(-r^2 / h)`` is separable, and the logarithm is a squared distance. On
    hard masks it is twice as close to the exact distance, and it costs little beside a network.

    Borders are replicated. Along an axis that is coarser than the finest, offsets are counted from the voxel's face,
    so that the zero of the map stays on the faces for anisotropic spacing too.

    Args:
        band: distance at which the map is truncated, in the unit of ``spacing`` (millimetres).
        spacing: voxel size by spatial axis, or one for all.
        kernel: ``"gaussian"`` or ``"exponential"``.
        h: width of the kernel, in voxels of the finest axis (exponential) or in their square (gaussian). A smaller one
            is closer to the exact distance on hard masks and less smooth. ``None``: 0.35 (exponential), or the smallest
            value from 1 on that keeps the band within float32 (gaussian).
        sharpness: power to which the probabilities are raised and then normalised. Hard masks and ties stay as they
            are, but the faint probabilities of soft masks, which shorten every distance, fade. With 1, a map reaches
            the edge of its band only where the network is certain to one in a million or more.
        spatial_dims: 2 or 3; needed only where ``spacing`` is one number for 2 axes.

    Raises:
        ValueError: when the kernel is unknown, a size is not positive, or ``h`` is so small that the kernel vanishes
            within the band.

    Example:
        >>> transform = SegmentationToSDM(band=2.0, spacing=(1.0, 1.0))
        >>> foreground = torch.tensor([0.0, 0, 0, 1, 1, 1]).expand(1, 1, 6, 6)
        >>> transform(torch.cat([1 - foreground, foreground], dim=1))[0, 1, 0]
        tensor([-1.0000, -0.7731, -0.3148,  0.3148,  0.7731,  1.0000])
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
        # From a voxel's centre to the face where the exact map is zero: half a voxel, and a little more because several
        # voxels of the other side add up in the convolution (measured on hard masks).
        self.centre_to_face = 0.5 + 0.2 * h
        self.radii = tuple(math.ceil(reach / step) for step in self.steps)
        self._matrices: dict[tuple[int, int, torch.device, torch.dtype], torch.Tensor] = {}

    def forward(self, probabilities: torch.Tensor) -> torch.Tensor:
        """Turn ``P`` into the SDM of each class, in float32 (or float64 if given) whatever the autocast dtype.

        Args:
            probabilities: ``B x K x *spatial``, ``K`` at least 2; their sum over ``K`` is 1.

        Returns:
            ``B x K x *spatial`` in [-1, 1], on the device of the input.

        Raises:
            ValueError: when the number of spatial axes is not that of ``spacing``, or there are fewer than 2 classes.
        """
        self._require_classes(probabilities)
        with torch.autocast(probabilities.device.type, enabled=False):
            probabilities = _at_least_float32(probabilities)
            if self.sharpness > 1:
                powers = probabilities**self.sharpness
                probabilities = powers / powers.sum(dim=1, keepdim=True)
            return self._signed_distance(probabilities)

    def from_log(self, log_probabilities: torch.Tensor) -> torch.Tensor:
        """Like :meth:`forward`, but faster, from a log-softmax: sharpening is then a product."""
        self._require_classes(log_probabilities)
        with torch.autocast(log_probabilities.device.type, enabled=False):
            log_probabilities = _at_least_float32(log_probabilities)
            if self.sharpness > 1:
                return self._signed_distance(torch.softmax(self.sharpness * log_probabilities, dim=1))
            return self._signed_distance(log_probabilities.exp())

    def _require_classes(self, probabilities: torch.Tensor) -> None:
        if probabilities.dim() != 2 + len(self.radii):
            shape = list(probabilities.shape)
            raise ValueError(f"expected B x K and {len(self.radii)} spatial axes, got a shape of {shape}.")
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
        log_ratio = torch.log(own + FLOOR) - torch.log(_sum_of_other_classes(own) + FLOOR)
        return torch.clamp(in_band * self.h * log_ratio, -1, 1)

    def _convolve_gaussian(self, probabilities: torch.Tensor) -> torch.Tensor:
        """Convolve by one product with a banded matrix for each axis: fast on every device at patch sizes."""
        shape = probabilities.shape
        result = probabilities.contiguous()
        for axis, size in enumerate(shape[2:]):
            matrix = self._matrix(axis, size, result)
            if axis == len(self.radii) - 1:
                result = result @ matrix.T
            else:  # from the left, with all later axes as columns: nothing is transposed in memory
                result = (matrix @ result.view(-1, size, math.prod(shape[3 + axis :]))).view(shape)
        return result

    def _matrix(self, axis: int, size: int, like: torch.Tensor) -> torch.Tensor:
        """The kernel along ``axis`` as a banded ``size x size`` matrix, made once for each size, device and dtype."""
        key = (axis, size, like.device, like.dtype)
        if key in self._matrices:
            return self._matrices[key]
        if len(self._matrices) >= CACHED_MATRICES:  # whole scans of ever new sizes
            self._matrices.clear()
        with torch.inference_mode(False):  # a later training may need the same matrix
            radius = self.radii[axis]
            weights = torch.exp(-(self._offsets(axis) ** 2) / self.h)
            columns = (torch.arange(size)[:, None] + torch.arange(-radius, radius + 1)).clamp(0, size - 1)
            matrix = torch.zeros(size, size, dtype=weights.dtype).scatter_add_(1, columns, weights.expand(size, -1))
            self._matrices[key] = matrix.to(like)
        return self._matrices[key]

    def _convolve_exponential(self, probabilities: torch.Tensor) -> torch.Tensor:
        """Convolve densely, as the paper does."""
        offsets = torch.meshgrid(*[self._offsets(axis) for axis in range(len(self.radii))], indexing="ij")
        distance = torch.stack(offsets).square().sum(dim=0).sqrt()
        weight = torch.exp(-distance / self.h).to(probabilities)[None, None]
        single = probabilities.flatten(0, 1)[:, None]
        padding = [radius for radius in reversed(self.radii) for _ in range(2)]
        padded = functional.pad(single, padding, mode="replicate")
        convolution = functional.conv3d if len(self.radii) == 3 else functional.conv2d
        return convolution(padded, weight).view_as(probabilities)

    def _offsets(self, axis: int) -> torch.Tensor:
        """Distances of the kernel's taps along ``axis``, in voxels of the finest axis."""
        taps = torch.arange(-self.radii[axis], self.radii[axis] + 1, dtype=torch.float64).abs()
        return torch.where(taps == 0, 0.0, (taps - 0.5) * self.steps[axis] + 0.5)


class _GaussianDistance(torch.autograd.Function):
    """Signed distance from the classes convolved with a Gaussian kernel, ``B x K x *spatial``.

    ``x = h * log(own / others)`` is a signed square of the distance to the centre of the nearest voxel on the other
    side, and ``sign(x) * (sqrt(|x| + offset^2) - offset)`` the distance to its face. Its derivative in ``x`` is
    ``1 / (2 * sqrt(|x| + offset^2))``, also at 0. Written out, because autograd would need three times the passes over
    the volume and twice the memory.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, own: torch.Tensor, h: float, offset: float, scale: float) -> torch.Tensor:
        others = _sum_of_other_classes(own).add_(FLOOR)
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
        to_others = _sum_of_other_classes(of_log_ratio / others)
        return of_log_ratio.div_(own).sub_(to_others), None, None, None


def _sum_of_other_classes(maps: torch.Tensor) -> torch.Tensor:
    """Sum of the other classes' maps, ``B x K x *spatial``; added up, since total minus own would cancel digits."""
    classes = maps.shape[1]
    others = torch.ones(classes, classes, device=maps.device, dtype=maps.dtype).fill_diagonal_(0)
    return torch.einsum("ck,bk...->bc...", others, maps)


def _at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
