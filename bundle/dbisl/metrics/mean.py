"""The mean of a training's scalar that some iterations leave undefined."""

from __future__ import annotations

import torch
from ignite.metrics import Metric
from ignite.metrics.metric import reinit__is_reduced, sync_all_reduce


class MeanOfDefined(Metric):
    """Ignite metric: the mean of a scalar over the iterations that define it (that is, give no NaN).

    The mean is NaN when no iteration defines the scalar. Updates stay on the metric's device, so that the CPU waits for
    a GPU only when the mean is computed.
    """

    @reinit__is_reduced
    def reset(self) -> None:
        """Forget all values."""
        self._sum_and_count = torch.zeros(2, device=self._device)

    @reinit__is_reduced
    def update(self, output: torch.Tensor | float) -> None:
        """Add the scalar of one iteration."""
        value = torch.as_tensor(output, dtype=torch.float32, device=self._device).detach()
        self._sum_and_count = self._sum_and_count + torch.stack([value.nan_to_num(), (~value.isnan()).float()])

    @sync_all_reduce("_sum_and_count")
    def compute(self) -> float:
        """Return the mean over the iterations of all processes."""
        return float(self._sum_and_count[0] / self._sum_and_count[1])
