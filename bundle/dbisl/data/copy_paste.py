"""Boxes of labeled patches pasted into unlabeled ones, with their label."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

CERTAINTY = 12.0
"""Logit of the true class where a label is pasted: sure to one in 160 000."""


class CopyPaste:
    """Pastes a box of a labeled patch into an unlabeled one, and the truth in that box into the teacher's answer.

    The network then sees unlabeled anatomy around labeled anatomy, with a target that is right in the box. It is one
    direction, labeled into unlabeled, of bidirectional copy-paste (Bai et al., CVPR 2023), with a box placed anywhere.

    Args:
        prob: of each unlabeled patch.
        low, high: shortest and longest edge of the box, as a fraction of the patch's.

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
        teacher: tuple[torch.Tensor, torch.Tensor | None],
        known: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor | None]]:
        """Paste into the unlabeled part of a batch.

        The places come from the CPU's random generator: drawing them never waits for a GPU.

        Args:
            images: ``B x C x *spatial``, the labeled patches first.
            label: class indices of the labeled patches, ``B_l x 1 x *spatial``.
            sdm: exact SDM of the labeled patches, ``B_l x K x *spatial``; needed where the teacher answers with one.
            teacher: its ``(logits, R)`` for the unlabeled patches, each ``B_u x K x *spatial``; ``R`` may be None.
            known: which voxels of ``label`` were annotated, ``B_l x 1 x *spatial``: only these are pasted, and only
                where the SDM is not NaN; None: all of them.

        Returns:
            The new images and the new answers (float32); the arguments are left as they were.

        Raises:
            ValueError: when the teacher has an SDM and the labels have none.
        """
        logits, r = teacher
        if r is not None and sdm is None:
            raise ValueError("copy-paste needs the SDM of the labels for a network that answers with one.")
        images, logits = images.clone(), logits.float().clone()
        r = None if r is None else r.float().clone()
        labeled, classes = len(label), logits.shape[1]
        for index in range(len(logits)):
            source = index % labeled
            if torch.rand(()) >= self.prob:
                continue
            pasted = self._pasted(images.shape[2:]).to(images.device, non_blocking=True)
            if known is not None:
                pasted = pasted & known[source, 0]
                if r is not None and sdm is not None:
                    pasted = pasted & ~sdm[source].isnan().any(dim=0)
            one_hot = functional.one_hot(label[source, 0].long(), classes).movedim(-1, 0)
            images[labeled + index] = torch.where(pasted, images[source], images[labeled + index])
            logits[index] = torch.where(pasted, CERTAINTY * one_hot.float(), logits[index])
            if r is not None and sdm is not None:
                r[index] = torch.where(pasted, sdm[source].float(), r[index])
        return images, (logits, r)

    def _pasted(self, size: torch.Size) -> torch.Tensor:
        """Which voxels come from the labeled patch: a box."""
        inside = torch.zeros(size, dtype=torch.bool)
        inside[tuple(self._box(size))] = True
        return inside

    def _box(self, size: torch.Size) -> list[slice]:
        box = []
        for voxels in size:
            edge = math.ceil(voxels * float(torch.empty(()).uniform_(self.low, self.high)))
            start = int(torch.randint(0, voxels - edge + 1, ()))
            box.append(slice(start, start + edge))
        return box
