"""Several networks that predict together, such as the networks of the folds."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


class EnsembleNetwork(nn.Module):
    """Networks that see the same image.

    It gives each network's own output, because logits must not be averaged.
    :class:`dbisl.inferers.DualTaskInferer` turns each into probabilities and averages those.

    Args:
        members: the networks.
    """

    def __init__(self, members: Iterable[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, image: torch.Tensor) -> list[Any]:
        """Return each member's output for an image, ``B x C x *spatial``, in the order of the members."""
        return [member(image) for member in self.members]


def ensemble(network: nn.Module, ckpt_path: Any) -> nn.Module:
    """Return a network for the weights that are to be loaded.

    Args:
        network: a network of the kind that was trained.
        ckpt_path: the file of the weights, or a list with a file for each member.

    Returns:
        For a file, ``network`` itself. For a list, an :class:`EnsembleNetwork` of ``network`` and copies of it.
    """
    if not isinstance(ckpt_path, (list, tuple)):
        return network
    return EnsembleNetwork([network, *(copy.deepcopy(network) for _ in ckpt_path[1:])])
