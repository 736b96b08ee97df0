"""Evaluation: Dice, Jaccard, 95 % Hausdorff and average surface distance, one row a case, task and class.

The definitions are those that the semi-supervised literature reports, MedPy's ``dc``, ``jc``, ``hd95`` and ``asd``:
a surface voxel is a voxel of the mask with a neighbour across a face outside of it, and the image's border counts as
outside. MONAI's building blocks find the surfaces and the distances; its ``HausdorffDistanceMetric`` takes the larger
of two percentiles where MedPy takes one percentile of both directions together, so its numbers differ.
"""

from __future__ import annotations

import torch
from ignite.metrics import Metric
from ignite.metrics.metric import reinit__is_reduced, sync_all_reduce


class MeanOfDefined(Metric):
    """Mean of a scalar over the iterations in which it is defined (not NaN); NaN where it never is.

    The host does not wait for a GPU until the mean is asked for.
    """

    @reinit__is_reduced
    def reset(self) -> None:
        self._sum_and_count = torch.zeros(2, device=self._device)

    @reinit__is_reduced
    def update(self, output: torch.Tensor | float) -> None:
        value = torch.as_tensor(output, dtype=torch.float32, device=self._device).detach()
        self._sum_and_count = self._sum_and_count + torch.stack([value.nan_to_num(), (~value.isnan()).float()])

    @sync_all_reduce("_sum_and_count")
    def compute(self) -> float:
        return float(self._sum_and_count[0] / self._sum_and_count[1])
