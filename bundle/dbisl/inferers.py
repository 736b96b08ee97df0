"""Inference over both tasks at once."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.inferers import SlidingWindowInferer
from monai.utils import ensure_tuple_rep, fall_back_tuple


class DualTaskInferer(SlidingWindowInferer):
    """A sliding window whose one answer holds both tasks: ``P`` and ``R``, stacked along the channels.

    One tensor, because MONAI's own tools expect one; :class:`dbisl.transforms.FuseTasksd` takes it apart. A network
    of one task answers with ``P`` alone. The other arguments are those of MONAI's ``SlidingWindowInferer``, with two
    notes: ``overlap`` is the least overlap, because the windows are spread evenly over each image, where MONAI's last
    window may repeat most of the one before; and ``device`` or ``cpu_thresh`` keep the answer for an image that is too
    large for the GPU on the CPU, while the windows still run where the image is.

    Args:
        amp: whether the network runs under bfloat16 autocast, on the CPU too; the answer is float32.
    """

    def __init__(self, *args: Any, amp: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.amp = amp

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """``B x C x *spatial`` to ``B x 2K x *spatial`` (``B x K x *spatial`` for one task), float32."""

        def both_tasks(windows: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            with torch.autocast(windows.device.type, dtype=torch.bfloat16, enabled=self.amp):
                answer = network(windows, *args, **kwargs)
            if isinstance(answer, torch.Tensor):
                return torch.softmax(answer.float(), dim=1)
            logits, sdm = answer
            return torch.cat([torch.softmax(logits.float(), dim=1), sdm.float()], dim=1)

        even = copy.copy(self)  # the overlap is this image's; another thread may be at another image
        even.overlap = self.even_overlap(inputs.shape[2:])
        return SlidingWindowInferer.__call__(even, inputs, both_tasks, *args, **kwargs)  # type: ignore[return-value]

    def even_overlap(self, size: Sequence[int]) -> tuple[float, ...]:
        """The overlap along each axis that spreads MONAI's windows evenly over an image of ``size`` voxels.

        MONAI starts a window every ``int(window * (1 - overlap))`` voxels and ends the last one with the image. Of all
        overlaps that take as many windows as the one asked for, this is the largest.
        """
        overlaps = []
        windows = fall_back_tuple(self.roi_size, size)
        for voxels, window, overlap in zip(size, windows, ensure_tuple_rep(self.overlap, len(size)), strict=True):
            if 0 <= overlap < 1 and voxels > window:
                steps = math.ceil((voxels - window) / max(int(window * (1 - overlap)), 1))
                step = math.ceil((voxels - window) / steps)
                overlap = max(1 - (step + 0.5) / window, 0.0)  # the half is cut off again by MONAI's int()
            overlaps.append(overlap)
        return tuple(overlaps)
