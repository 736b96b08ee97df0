"""Inference over both tasks at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import SlidingWindowInferer


class DualTaskInferer(SlidingWindowInferer):
    """A sliding window whose one answer holds both tasks: ``P`` and ``R``, stacked along the channels.

    One tensor, because MONAI's own tools expect one; :class:`dbisl.transforms.FuseTasksd` takes it apart. A network
    of one task answers with ``P`` alone. The other arguments are those of MONAI's ``SlidingWindowInferer``.

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

        return super().__call__(inputs, both_tasks, *args, **kwargs)  # type: ignore[return-value]
