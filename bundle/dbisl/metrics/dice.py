"""The Dice of each class of a case, by one rule for validation and for the report of an evaluation."""

from __future__ import annotations

from typing import Any

import torch
from monai.metrics import CumulativeIterationMetric
from monai.metrics.utils import do_metric_reduction
from monai.networks.utils import one_hot


def dice_by_class(prediction: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Return the Dice of each channel of two masks: 0 where only one of them has voxels, NaN where both are empty.

    Args:
        prediction: masks, ``B x K x *spatial``; voxels above 0 belong to the mask.
        reference: masks of the same shape.

    Returns:
        ``B x K`` on the device of the masks.

    Raises:
        ValueError: when the shapes differ.
    """
    if prediction.shape != reference.shape:
        raise ValueError(
            f"prediction and reference must have the same shape, got {tuple(prediction.shape)} and "
            f"{tuple(reference.shape)}."
        )
    in_prediction, in_reference = (masks.flatten(2) > 0 for masks in (prediction, reference))
    overlap = (in_prediction & in_reference).sum(dim=2)
    return 2 * overlap / (in_prediction.sum(dim=2) + in_reference.sum(dim=2))


class ForegroundDice(CumulativeIterationMetric):
    """MONAI metric: the mean Dice over the foreground classes of each case, and then over the cases.

    A class that the reference lacks counts 0 where it was predicted, as in :class:`dbisl.metrics.MetricsReport`; where
    it was rightly not predicted, it counts nowhere. MONAI's ``DiceMetric`` leaves out both, or counts 1 for the latter.

    :meth:`get_buffer` returns the Dice of each case and class, ``cases x (K - 1)``, NaN where both masks are empty.

    Args:
        num_classes: ``K``, to tell the classes of a class map apart; None where all masks have a channel per class.
    """

    def __init__(self, num_classes: int | None = None) -> None:
        super().__init__()
        self.num_classes = num_classes

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **_: Any) -> torch.Tensor:
        """Return the Dice of a batch, ``B x (K - 1)``.

        Args:
            y_pred: a channel per class, ``B x K x *spatial``, or a class map, ``B x 1 x *spatial``.
            y: the reference, in either form.

        Raises:
            ValueError: without a reference, and for class maps without ``num_classes``.
        """
        if y is None:
            raise ValueError("the Dice needs a reference, got None.")
        return dice_by_class(self._masks(y_pred)[:, 1:], self._masks(y)[:, 1:])

    def aggregate(self) -> torch.Tensor:
        """Return the mean over all cases, of all processes; 0 where no case has a number."""
        mean, _ = do_metric_reduction(self.get_buffer(), "mean")
        return mean

    def _masks(self, classes: torch.Tensor) -> torch.Tensor:
        if classes.shape[1] > 1:
            return classes
        if self.num_classes is None:
            raise ValueError("num_classes must be given for class maps, got None.")
        return one_hot(classes, self.num_classes)
