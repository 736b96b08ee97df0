"""The V-Net of the semi-supervised literature, with one decoder a task; and another backbone of the same contract.

3x3x3 convolutions, normalisation and ReLU, strided convolutions down, transposed convolutions up, and skips that are
added (Milletari et al. 2016, in the form that UA-MT, DTC and later work share; these normalise over the batch, which
here would mix labeled and unlabeled patches). MONAI's own ``VNet`` is another network: 5x5x5 kernels and five times the
parameters.
"""

from __future__ import annotations

import torch
from torch import nn


def fuse(logits: torch.Tensor, sdm: torch.Tensor, slope: float) -> torch.Tensor:
    """The fused probabilities ``(P + P_r) / 2`` of both answers, ``B x K x *spatial``, float32."""
    return (torch.softmax(logits.float(), dim=1) + torch.softmax(slope * sdm.float(), dim=1)) / 2


class _DualTask(nn.Module):
    """A shared encoder, and a decoder of its own for each task; a backbone adds the three as modules.

    Args:
        regression: whether there is the second task.
        fused_slope: None: the network answers with what its losses need. A number: with one tensor, the probabilities
            of the classes, float32, fused over both tasks where there are two, this being the slope of ``T_r2s``. The
            weights are the same.
        divisor: of which every spatial size is a multiple.
    """

    __constants__ = ["dual", "fused"]  # noqa: RUF012 - by which TorchScript compiles one branch of forward alone

    def __init__(self, regression: bool, fused_slope: float | None, divisor: int) -> None:
        super().__init__()
        self.divisor = divisor
        self.dual = regression
        self.fused = fused_slope is not None
        self.slope = 0.0 if fused_slope is None else float(fused_slope)

    def forward(self, image: torch.Tensor):  # type: ignore[no-untyped-def]
        """``B x C x *spatial`` to ``(logits, sdm)``, each ``B x K x *spatial``, or to the fused probabilities.

        ``sdm`` is the signed distance map of each class in units of the band: in ``[-1, 1]``, positive inside. Of a
        single task the answer is one tensor, logits or probabilities.

        Raises:
            ValueError: when a spatial size is no multiple of ``divisor``.
        """
        for size in image.shape[2:]:
            if size % self.divisor != 0:
                raise ValueError(
                    "The network halves its input several times: every spatial size must be a multiple of "
                    f"{self.divisor}, got {list(image.shape[2:])}."
                )
        features = self.encoder(image)  # type: ignore[operator]
        logits = self.segmentation(features)  # type: ignore[operator]
        if self.dual:
            sdm = torch.tanh(self.regression(features))  # type: ignore[operator]
            if self.fused:
                return fuse(logits, sdm, self.slope)
            return logits, sdm
        return torch.softmax(logits.float(), dim=1) if self.fused else logits
