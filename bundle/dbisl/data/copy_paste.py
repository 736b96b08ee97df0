"""Boxes of labeled patches, pasted into unlabeled ones together with their labels."""

from __future__ import annotations

import math

import torch
from monai.networks.utils import one_hot

from dbisl.bridge import DualTaskOutput

CERTAINTY = 12.0
"""Logit of the true class where a label is pasted: another class gets a probability of about one in 160 000."""


class CopyPaste:
    """Pastes a box of a labeled patch into an unlabeled one, and the label of that box into the teacher's output.

    The network then sees unlabeled anatomy around labeled anatomy, with a target that is right inside the box. This is
    one direction, labeled into unlabeled, of bidirectional copy-paste (Bai et al., CVPR 2023), with a box at any place.

    Args:
        prob: probability with which a box is pasted into an unlabeled patch.
        low, high: shortest and longest edge of the box, as a fraction of the patch's edge.

    Raises:
        ValueError: unless ``0 <= prob <= 1`` and ``0 < low <= high <= 1``.
    """

    def __init__(self, prob: float, low: float = 0.4, high: float = 0.8) -> None:
        if not 0 <= prob <= 1 or not 0 < low <= high <= 1:
            raise ValueError(
                f"expected a prob in [0, 1] and fractions 0 < low <= high <= 1, got {prob}, low={low} and high={high}."
            )
        self.prob = prob
        self.low, self.high = low, high

    def __call__(
        self,
        images: torch.Tensor,
        label: torch.Tensor,
        sdm: torch.Tensor | None,
        teacher: DualTaskOutput,
        valid_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, DualTaskOutput]:
        """Paste into the unlabeled part of a batch.

        The places come from the CPU's random generator, so that drawing them never waits for a GPU.

        Args:
            images: the labeled patches, then the unlabeled ones, ``(B_l + B_u) x C x *spatial``.
            label: class indices of the labeled patches, ``B_l x 1 x *spatial``, ``B_l`` at least 1.
            sdm: exact SDM of the labeled patches, ``B_l x K x *spatial``; needed if the teacher predicts one.
            teacher: the teacher's output for the unlabeled patches, ``B_u x K x *spatial`` each.
            valid_mask: which voxels of ``label`` were annotated, ``B_l x 1 x *spatial``. Only these are pasted, and
                only where the SDM is not NaN. None: all voxels.

        Returns:
            The new images and the teacher's new output (float32); the arguments stay unchanged.

        Raises:
            ValueError: when the teacher has an SDM and the labels have none.
        """
        if teacher.sdm is not None and sdm is None:
            raise ValueError("copy-paste needs the SDM of the labels for a network that predicts one.")
        images, logits = images.clone(), teacher.logits.float().clone()
        r = None if teacher.sdm is None else teacher.sdm.float().clone()
        labeled, classes = len(label), logits.shape[1]
        for index in range(len(logits)):
            source = index % labeled
            if torch.rand(()) >= self.prob:
                continue
            pasted = self._random_box(images.shape[2:]).to(images.device, non_blocking=True)
            if valid_mask is not None:
                pasted = pasted & valid_mask[source, 0]
                if r is not None and sdm is not None:
                    pasted = pasted & ~sdm[source].isnan().any(dim=0)
            images[labeled + index] = torch.where(pasted, images[source], images[labeled + index])
            truth = CERTAINTY * one_hot(label[source : source + 1], classes)[0]
            logits[index] = torch.where(pasted, truth, logits[index])
            if r is not None and sdm is not None:
                r[index] = torch.where(pasted, sdm[source].float(), r[index])
        return images, DualTaskOutput(logits, r)

    def _random_box(self, size: torch.Size) -> torch.Tensor:
        """Return the mask of the pasted voxels, a box at a random place, ``*spatial``."""
        box = []
        for voxels in size:
            edge = math.ceil(voxels * float(torch.empty(()).uniform_(self.low, self.high)))
            start = int(torch.randint(0, voxels - edge + 1, ()))
            box.append(slice(start, start + edge))
        mask = torch.zeros(size, dtype=torch.bool)
        mask[tuple(box)] = True
        return mask
