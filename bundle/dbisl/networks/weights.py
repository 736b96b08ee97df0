"""Check that a file holds the weights of a network before it is loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from dbisl.utils.errors import InputError
from dbisl.utils.files import first_line


def check_checkpoint(path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], network: nn.Module) -> None:
    """Check that a file, or each of several, holds the weights of a network. The network stays as it is.

    Args:
        path: a file with a state dict, as ``torch.save`` writes it, or a list with a file for each member of an
            ensemble.
        network: the network that the weights are for.

    Raises:
        InputError: if there is no such file, or it holds no weights or the weights of another network; also if the list
            is empty.
    """
    if isinstance(path, (list, tuple)):
        if not path:
            raise InputError("ckpt_path is an empty list: expected the weights of at least one trained network.")
        for member in path:
            check_checkpoint(member, network)
        return
    if not isinstance(path, (str, os.PathLike)) or not os.path.isfile(path):
        raise InputError(
            f"{path} does not exist: expected the weights of a trained network (ckpt_path; training writes them as "
            "model.pt and model_final.pt in ckpt_dir)."
        )
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and PyTorch raise a dozen types
        found, reason = None, f"it cannot be read: {first_line(error)}"
    else:
        reason = f"it holds a {type(found).__name__}"
    if not isinstance(found, Mapping):
        raise InputError(
            f"{path} has no weights ({reason}): expected the state dict of a trained network (ckpt_path); an exported "
            "network needs exported.json."
        )
    expected = network.state_dict()
    for name in [*expected, *found]:
        found_shape, expected_shape = (_weight_shape(weights, name) for weights in (found, expected))
        if found_shape != expected_shape:
            raise InputError(
                f"{path} holds the weights of another network: {name} is {found_shape}, expected {expected_shape}; "
                "give the same config files and overrides as in training."
            )


def _weight_shape(weights: Mapping[str, Any], name: str) -> str:
    """Return the shape of one weight as a message shows it."""
    if name not in weights:
        return "missing"
    if not isinstance(weights[name], torch.Tensor):
        return "not a tensor"
    return " x ".join(map(str, weights[name].shape)) or "one number"
