"""Sliding windows."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.inferers import SlidingWindowInferer
from monai.utils import ensure_tuple_rep, fall_back_tuple


class EvenWindowInferer(SlidingWindowInferer):
    """MONAI's ``SlidingWindowInferer`` with its windows spread evenly, autocast on any device, and air for free.

    Windows of one and the same value (the air around a body, clipped to one intensity, or what a scan was padded with)
    pass through the network once: it answers alike each time. The arguments are MONAI's, with two notes: ``overlap`` is
    the least overlap, because the windows are spread evenly over each image, where MONAI's last window may repeat most
    of the one before; and ``device`` or ``cpu_thresh`` keep the answer for an image that is too large for the GPU on
    the CPU, while the windows still run where the image is.

    Args:
        amp: whether the network runs under bfloat16 autocast, on the CPU too; the answer is float32.
        flips: spatial axes along which the windows are also shown mirrored, in every combination; the answer is the
            mean. Each axis doubles the time.
    """

    def __init__(self, *args: Any, amp: bool = False, flips: Sequence[int] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.amp = amp
        axes = sorted({axis + 2 for axis in flips})
        self.flips = [chosen for count in range(len(axes) + 1) for chosen in itertools.combinations(axes, count)]

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """``B x C x *spatial`` to the answer of the network, ``B x channels x *spatial``, float32."""

        def in_float32(windows: torch.Tensor) -> torch.Tensor:
            total: torch.Tensor | float = 0.0
            for axes in self.flips:
                with torch.autocast(windows.device.type, dtype=torch.bfloat16, enabled=self.amp):
                    answer = network(windows.flip(axes) if axes else windows, *args, **kwargs)
                total = total + (self.stack(answer).flip(axes) if axes else self.stack(answer))
            return total / len(self.flips)  # type: ignore[return-value]

        even = copy.copy(self)  # the overlap is this image's; another thread may be at another image
        even.overlap = self.even_overlap(inputs.shape[2:])
        return SlidingWindowInferer.__call__(even, inputs, _OncePerConstant(in_float32))  # type: ignore[return-value]

    def stack(self, answer: Any) -> torch.Tensor:
        """The network's answer for one batch of windows as one float32 tensor."""
        return answer.float()

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


class _OncePerConstant:
    """``network``, which is asked once about windows that hold one value a channel, and remembers its answer."""

    def __init__(self, network: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.network = network
        self.known: dict[tuple[float, ...], torch.Tensor] = {}

    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        low, high = torch.aminmax(windows.flatten(2), dim=2)
        constant = (low == high).all(dim=1).tolist()
        values = [tuple(row) if flat else None for row, flat in zip(low.tolist(), constant, strict=True)]
        asked = [index for index, value in enumerate(values) if value is None or value not in self.known]
        fresh = iter(self.network(windows[asked])) if asked else iter(())
        answers = []
        for index, value in enumerate(values):
            answers.append(next(fresh) if index in asked else self.known[value])  # type: ignore[index]
            if value is not None and value not in self.known:
                self.known[value] = answers[-1].clone()  # not a view, which would keep its whole batch
        return torch.stack(answers)


class DualTaskInferer(EvenWindowInferer):
    """A sliding window whose one answer holds both tasks: ``P``, ``P_r`` and ``R``, stacked along the channels.

    One tensor, because MONAI's own tools expect one; :class:`dbisl.transforms.FuseTasksd` takes it apart. The network
    gives logits and an SDM, ``3K`` channels in all; or logits alone, of one task, which become ``P``, ``K`` channels.
    All are means over the windows, ``P_r = T_r2s(R)`` too: fused, they are what the fused network's windows give.

    Args:
        slope: of ``T_r2s``, as in training.
        fused: whether the network answers with probabilities (``fused_slope``, or an exported one), which are taken as
            they are.
        args, kwargs: those of :class:`EvenWindowInferer`.
    """

    def __init__(self, *args: Any, slope: float, fused: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.slope = slope
        self.fused = fused

    def stack(self, answer: torch.Tensor | tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """The channels for one batch of windows."""
        if isinstance(answer, torch.Tensor):
            return answer.float() if self.fused else torch.softmax(answer.float(), dim=1)
        logits, sdm = (part.float() for part in answer)
        return torch.cat([torch.softmax(logits, dim=1), torch.softmax(self.slope * sdm, dim=1), sdm], dim=1)
