"""What every backbone shares: one encoder, a decoder for each task, and the forms of their output."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.utils import ensure_tuple_rep
from torch import nn

from dbisl.bridge import DualTaskOutput, SDMToSegmentation, fuse_tasks


class DualTaskNetwork(nn.Module):
    """Network with a shared encoder and one decoder for each task.

    A backbone derives from this class and adds three modules: ``encoder``, which turns an image into feature maps, and
    ``segmentation`` and ``regression``, which each turn the feature maps into ``B x K x *spatial``; ``regression`` only
    where ``dual_task`` is true. TorchScript must be able to compile it.

    Args:
        dual_task: whether the network has the second task, the regression of the SDM.
        fused_output: False: the output is what the losses need. True: it is one tensor, the float32 probabilities fused
            over the tasks. The weights are the same.
        sdm_slope: slope of ``T_r2s``, positive; used only where ``fused_output`` is true.
        strides: strides of each level below the first, by spatial axis, as :func:`level_strides` gives them.
        definition: the backbone's own arguments by name, for the recipe of trained weights.

    Attributes:
        definition: these arguments, ``strides`` and ``dual_task``.
        divisor: by spatial axis, the number of which the image's size must be a multiple: the product of the strides.

    Raises:
        ValueError: when ``sdm_slope`` is not positive.
    """

    # Constants, so that TorchScript compiles only one branch of forward.
    __constants__ = ["dual_task", "fused_output"]  # noqa: RUF012 - TorchScript reads a plain list
    __jit_ignored_attributes__ = ["definition"]  # noqa: RUF012 - the same

    def __init__(
        self,
        *,
        dual_task: bool,
        fused_output: bool,
        sdm_slope: float,
        strides: Sequence[Sequence[int]],
        definition: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.definition = {**(definition or {}), "strides": strides, "dual_task": dual_task}
        self.divisor = [math.prod(of_axis) for of_axis in zip(*strides, strict=True)]
        self.dual_task = dual_task
        self.fused_output = fused_output
        self.sdm_to_segmentation = SDMToSegmentation(sdm_slope)

    def forward(self, image: torch.Tensor):  # type: ignore[no-untyped-def]
        """Predict both tasks.

        Args:
            image: ``B x C x *spatial``.

        Returns:
            A :class:`dbisl.bridge.DualTaskOutput`, whose ``sdm`` is in [-1, 1] and positive inside; with a single task
            the logits, ``B x K x *spatial``; with ``fused_output`` the probabilities, in the same shape.

        Raises:
            ValueError: when a spatial size is not a multiple of ``divisor``.
        """
        for axis, divisor in enumerate(self.divisor):
            if image.shape[2 + axis] % divisor != 0:
                raise ValueError(
                    "The network reduces its input several times: the spatial sizes must be multiples of "
                    f"{self.divisor}, got {list(image.shape[2:])}."
                )
        features = self.encoder(image)  # type: ignore[operator]
        logits = self.segmentation(features)  # type: ignore[operator]
        if self.dual_task:
            sdm = torch.tanh(self.regression(features))  # type: ignore[operator]
            if self.fused_output:
                return fuse_tasks(torch.softmax(logits.float(), dim=1), self.sdm_to_segmentation(sdm))
            return DualTaskOutput(logits, sdm)
        return torch.softmax(logits.float(), dim=1) if self.fused_output else logits


def level_strides(
    spatial_dims: int, levels: int, strides: Sequence[int | Sequence[int]] | None = None
) -> list[tuple[int, ...]]:
    """Return the strides with which each level below the first reduces the one above it.

    Args:
        spatial_dims: 2 or 3.
        levels: number of resolutions.
        strides: for each level below the first, one number or one per axis; None: 2 on every axis. A stride of 1 keeps
            an axis, as for thick slices: ``[[2, 2, 1], [2, 2, 1], [2, 2, 2]]``.

    Raises:
        ValueError: when the number of levels or axes is another one, or a stride is not positive.
    """
    return _by_axis("strides", spatial_dims, levels - 1, [2] * (levels - 1) if strides is None else strides)


def level_kernels(
    spatial_dims: int, levels: int, kernel_sizes: Sequence[int | Sequence[int]] | None = None
) -> list[tuple[int, ...]]:
    """Return the kernel size of the convolutions in each level, the full resolution first.

    Args:
        spatial_dims: 2 or 3.
        levels: number of resolutions.
        kernel_sizes: for each level, one odd number or one per axis; None: 3 on every axis. A size of 1 leaves slices
            apart, as for thick slices: ``[[3, 3, 1], [3, 3, 1], 3, 3]``.

    Raises:
        ValueError: when the number of levels or axes is another one, or a size is not odd.
    """
    sizes = _by_axis("kernel_sizes", spatial_dims, levels, [3] * levels if kernel_sizes is None else kernel_sizes)
    even = [size for of_level in sizes for size in of_level if size % 2 == 0]
    if even:
        raise ValueError(f"kernel_sizes is {kernel_sizes}: expected odd numbers, got {even[0]}.")
    return sizes


def _by_axis(name: str, spatial_dims: int, levels: int, values: Sequence[int | Sequence[int]]) -> list[tuple[int, ...]]:
    """One tuple with a number per axis for each level."""
    if len(values) != levels:
        raise ValueError(f"{name} is {values}: expected {levels} entries, one per level, got {len(values)}.")
    if any(not isinstance(value, int) and len(value) != spatial_dims for value in values):
        raise ValueError(f"{name} is {values}: expected one number, or {spatial_dims} numbers, per level.")
    of_levels = [tuple(ensure_tuple_rep(value, spatial_dims)) for value in values]
    if any(number < 1 for of_level in of_levels for number in of_level):
        raise ValueError(f"{name} is {values}: expected numbers of at least 1.")
    return of_levels
