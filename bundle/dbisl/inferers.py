"""Sliding windows over whole scans."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.inferers import SlidingWindowInferer
from monai.utils import ensure_tuple_rep, fall_back_tuple

from dbisl.bridge import DualTaskOutput, SDMToSegmentation


class EvenWindowInferer(SlidingWindowInferer):
    """MONAI's ``SlidingWindowInferer`` with evenly spread windows, autocast on any device, and cheap empty regions.

    Windows that hold one constant value (the air around a body, clipped to one intensity, or padding) pass through the
    network once, since it predicts the same each time. The arguments are MONAI's, with two notes: ``overlap`` is the
    least overlap, because windows are spread evenly over each image, where MONAI's last window may repeat most of the
    one before; and ``device`` or ``cpu_thresh`` keep the prediction for an image that is too large for the GPU on the
    CPU, while the windows still run where the image is.

    Args:
        amp: whether the network runs under bfloat16 autocast, also on the CPU; the prediction is float32.
        flips: spatial axes along which the windows are also mirrored, in every combination; the prediction is the mean.
            Each axis doubles the time.
    """

    def __init__(self, *args: Any, amp: bool = False, flips: Sequence[int] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.amp = amp
        axes = sorted({axis + 2 for axis in flips})
        self.flips = [chosen for count in range(len(axes) + 1) for chosen in itertools.combinations(axes, count)]

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Predict whole images.

        Args:
            inputs: ``B x C x *spatial``.
            network: called with batches of windows. If it gives a list (an ensemble), the prediction is the mean.
            args, kwargs: further arguments of the network.

        Returns:
            The network's output as :meth:`stack` gives it, ``B x channels x *spatial``, float32.
        """

        def in_float32(windows: torch.Tensor) -> torch.Tensor:
            total: torch.Tensor | float = 0.0
            for axes in self.flips:
                with torch.autocast(windows.device.type, dtype=torch.bfloat16, enabled=self.amp):
                    output = network(windows.flip(axes) if axes else windows, *args, **kwargs)
                stacked = self._stack_mean(output)
                total = total + (stacked.flip(axes) if axes else stacked)
            return total / len(self.flips)  # type: ignore[return-value]

        even = copy.copy(self)  # this image's overlap; another thread may be working on another image
        even.overlap = self.even_overlap(inputs.shape[2:])
        return SlidingWindowInferer.__call__(even, inputs, _OncePerConstant(in_float32))  # type: ignore[return-value]

    def stack(self, output: Any) -> torch.Tensor:
        """Turn the network's output for a batch of windows into one float32 tensor."""
        return output.float()

    def _stack_mean(self, output: Any) -> torch.Tensor:
        """Stack an output; for an ensemble, which gives a list of outputs, return the mean of all."""
        if not isinstance(output, list):
            return self.stack(output)
        return torch.stack([self.stack(of_member) for of_member in output]).mean(dim=0)

    def even_overlap(self, size: Sequence[int]) -> tuple[float, ...]:
        """Return the overlap along each axis that spreads MONAI's windows evenly over an image of ``size`` voxels.

        MONAI starts a window every ``int(window * (1 - overlap))`` voxels and ends the last one with the image. Among
        all overlaps that need as many windows as the configured one, this is the largest.
        """
        overlaps = []
        windows = fall_back_tuple(self.roi_size, size)
        for voxels, window, overlap in zip(size, windows, ensure_tuple_rep(self.overlap, len(size)), strict=True):
            if 0 <= overlap < 1 and voxels > window:
                steps = math.ceil((voxels - window) / max(int(window * (1 - overlap)), 1))
                step = math.ceil((voxels - window) / steps)
                overlap = max(1 - (step + 0.5) / window, 0.0)  # MONAI's int() cuts the half off again
            overlaps.append(overlap)
        return tuple(overlaps)


class _OncePerConstant:
    """Network that is called once for windows with one value in each channel; the output is remembered."""

    def __init__(self, network: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.network = network
        self.remembered: dict[tuple[float, ...], torch.Tensor] = {}

    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        low, high = torch.aminmax(windows.flatten(2), dim=2)
        constant = (low == high).all(dim=1).tolist()
        values = [tuple(row) if is_constant else None for row, is_constant in zip(low.tolist(), constant, strict=True)]
        new = [index for index, value in enumerate(values) if value is None or value not in self.remembered]
        computed = iter(self.network(windows[new])) if new else iter(())
        outputs = []
        for index, value in enumerate(values):
            outputs.append(next(computed) if index in new else self.remembered[value])  # type: ignore[index]
            if value is not None and value not in self.remembered:
                self.remembered[value] = outputs[-1].clone()  # not a view, which would keep its whole batch
        return torch.stack(outputs)


class DualTaskInferer(EvenWindowInferer):
    """Sliding window whose prediction holds both tasks: ``P``, ``P_r`` and ``R``, stacked along the channels.

    The prediction is one tensor because MONAI's tools expect one; :class:`dbisl.transforms.FuseTasksd` takes it apart.
    It has ``3K`` channels, or ``K`` (``P``) for a network with a single task. All are means over the windows, also
    ``P_r = T_r2s(R)``: fused, they equal what the windows of the fused network give.

    Args:
        slope: slope of ``T_r2s``, as in training.
        fused: whether the network's output is probabilities (``fused_output``, or an exported network), which are taken
            as they are.
        args, kwargs: arguments of :class:`EvenWindowInferer`.
    """

    def __init__(self, *args: Any, slope: float, fused: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sdm_to_segmentation = SDMToSegmentation(slope)
        self.fused = fused

    def stack(self, output: torch.Tensor | DualTaskOutput) -> torch.Tensor:
        """Return the channels for a batch of windows."""
        if self.fused and isinstance(output, torch.Tensor):
            return super().stack(output)
        logits, sdm = DualTaskOutput.of(output)
        p = torch.softmax(logits.float(), dim=1)
        return p if sdm is None else torch.cat([p, self.sdm_to_segmentation(sdm), sdm.float()], dim=1)
