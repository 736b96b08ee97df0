"""What is watched in each training iteration beside the loss."""

from __future__ import annotations

from typing import Any

import torch
from ignite.engine import Engine
from monai.engines.utils import IterationEvents
from monai.networks.utils import one_hot
from monai.utils.enums import CommonKeys as Keys


class Monitor:
    """Adds to the ``terms`` of each training iteration what the ramp, the guard and the log need.

    - ``ramp``: the factor of the unlabeled terms;
    - ``dice``: mean Dice of the labeled patches over the annotated voxels, NaN where no structure is present;
    - ``foreground_labeled``: fraction of foreground in the labels, over the annotated voxels; with partly annotated
      labels also ``foreground_at_least``, over all voxels;
    - ``foreground_unlabeled``: fraction of foreground predicted on the unlabeled scans. A collapse to background shows
      here first.

    With both streams, ``engine.state.output["class_fractions"]`` has the fraction of each class, ``2 x K``: in the
    labels (over all voxels) and predicted on the unlabeled scans.

    All values but ``ramp``, a number, are tensors on the training device: nothing here waits for a GPU. The engine is a
    :class:`dbisl.engines.SemiSupervisedTrainer`.
    """

    def attach(self, engine: Engine) -> None:
        """Register with a trainer; handlers that read the terms after an iteration may come before or after."""
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self)

    @torch.no_grad()
    def __call__(self, engine: Any) -> None:
        output = engine.state.output
        label, valid_mask = output[Keys.LABEL], output["valid_mask"]
        # Reductions over the classes are fastest in the contiguous format.
        labeled, unlabeled = (
            output[key].to(torch.float32, memory_format=torch.contiguous_format)
            for key in (Keys.PRED, "pred_unlabeled")
        )
        num_classes = labeled.shape[1]
        terms = output["terms"]
        terms["ramp"] = engine.loss_function.ramp
        if len(label) > 0:
            terms["dice"] = _mean_dice(labeled, label, valid_mask)
            foreground = (label > 0).sum()
            annotated = label.numel() if valid_mask is None else valid_mask.sum().clamp(min=1)
            terms["foreground_labeled"] = foreground / annotated
            if valid_mask is not None:
                terms["foreground_at_least"] = foreground / label.numel()
        if len(unlabeled) > 0:
            fractions = _class_fractions(unlabeled.max(dim=1).indices, num_classes)
            terms["foreground_unlabeled"] = fractions[1:].sum()
            if len(label) > 0:
                output["class_fractions"] = torch.stack([_class_fractions(label, num_classes), fractions])


def _class_fractions(classes: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Fraction of voxels of each class, ``K``."""
    voxels = classes.flatten().long()
    counts = torch.zeros(num_classes, device=classes.device)
    return counts.scatter_add_(0, voxels, torch.ones_like(voxels, dtype=torch.float32)) / len(voxels)


def _mean_dice(logits: torch.Tensor, label: torch.Tensor, valid_mask: torch.Tensor | None) -> torch.Tensor:
    """Mean Dice over the batch of the foreground classes that the label or the prediction has; NaN without any."""
    predicted = logits == logits.amax(dim=1, keepdim=True)
    if valid_mask is not None:
        predicted &= valid_mask
    true = one_hot(label, logits.shape[1], dtype=torch.bool)
    overlap, total = (sums.flatten(2).sum(dim=(0, 2))[1:] for sums in (predicted & true, predicted.int() + true))
    return (2 * overlap / total.clamp(min=1)).sum() / (total > 0).sum()
