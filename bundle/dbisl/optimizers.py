"""The schedule of the learning rate."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_cosine_schedule(optimizer: Optimizer, warmup_steps: int, t_total: int, end_factor: float) -> LambdaLR:
    """Return a schedule that rises linearly and then follows a cosine over the whole training.

    The factor of step ``t`` is the smaller of ``(t + 1) / warmup_steps`` and the cosine
    ``max(end_factor, (1 + cos(pi * min(1, t / t_total))) / 2)``. MONAI's ``WarmupCosineSchedule`` is another curve: its
    cosine begins only after the warm-up.

    Args:
        optimizer: the optimizer, whose present learning rate is the highest.
        warmup_steps: iterations until the cosine takes over.
        t_total: iterations of the training. It is not saved with the state: a longer training stretches the curve.
        end_factor: least factor after the warm-up.
    """

    def factor(step: int) -> float:
        cosine = 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / t_total))
        return min((step + 1) / warmup_steps, max(end_factor, cosine))

    return LambdaLR(optimizer, factor)
