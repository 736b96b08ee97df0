"""What every backbone shares: one encoder, a decoder for each task, and the forms of their output."""

from __future__ import annotations

import torch
from torch import nn

from dbisl.bridge import DualTaskOutput, SDMToSegmentation, fuse_tasks


class DualTaskNetwork(nn.Module):
    """Network with a shared encoder and one decoder for each task.

    A backbone derives from this class and adds three modules: ``encoder``, which turns an image into feature maps, and
    ``segmentation`` and ``regression``, which each turn the feature maps into ``B x K x *spatial``; ``regression`` only
    where ``dual_task`` is true. TorchScript must be able to compile it.

    Args:
        dual_task: whether the network has the second task, the regression of the SDM.
        fused_output: False: the output is what the losses need. True: it is one tensor, the float32 probabilities fused
            over the tasks. The weights are the same.
        sdm_slope: slope of ``T_r2s``, positive; used only where ``fused_output`` is true.
        divisor: number that divides every spatial size of the image.

    Raises:
        ValueError: when ``sdm_slope`` is not positive.
    """

    # Constants, so that TorchScript compiles only one branch of forward.
    __constants__ = ["dual_task", "fused_output"]  # noqa: RUF012 - TorchScript reads a plain list

    def __init__(self, *, dual_task: bool, fused_output: bool, sdm_slope: float, divisor: int) -> None:
        super().__init__()
        self.divisor = divisor
        self.dual_task = dual_task
        self.fused_output = fused_output
        self.sdm_to_segmentation = SDMToSegmentation(sdm_slope)

    def forward(self, image: torch.Tensor):  # type: ignore[no-untyped-def]
        """Predict both tasks.

        Args:
            image: ``B x C x *spatial``.

        Returns:
            A :class:`dbisl.bridge.DualTaskOutput`, whose ``sdm`` is in [-1, 1] and positive inside; with a single task
            the logits, ``B x K x *spatial``; with ``fused_output`` the probabilities, in the same shape.

        Raises:
            ValueError: when a spatial size is not a multiple of ``divisor``.
        """
        for size in image.shape[2:]:
            if size % self.divisor != 0:
                raise ValueError(
                    "The network halves its input several times: every spatial size must be a multiple of "
                    f"{self.divisor}, got {list(image.shape[2:])}."
                )
        features = self.encoder(image)  # type: ignore[operator]
        logits = self.segmentation(features)  # type: ignore[operator]
        if self.dual_task:
            sdm = torch.tanh(self.regression(features))  # type: ignore[operator]
            if self.fused_output:
                return fuse_tasks(torch.softmax(logits.float(), dim=1), self.sdm_to_segmentation(sdm))
            return DualTaskOutput(logits, sdm)
        return torch.softmax(logits.float(), dim=1) if self.fused_output else logits
