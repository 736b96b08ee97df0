"""Scans on disk -> labeled, unlabeled and validation cases, and the checks that run before any training.

:func:`find_cases` reads a folder or a datalist, :func:`check_cases` reads every file once. Both raise
:class:`InputError` with a sentence that names the file or the key, what was found and what was expected.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from dbisl.utils.errors import InputError


def check_checkpoint(path: str | os.PathLike[str], network: nn.Module) -> None:
    """Check that a file holds the weights of a network, without loading them into it.

    Raises:
        InputError: when there is no such file, it holds no weights, or those of another network.
    """
    if not isinstance(path, (str, os.PathLike)) or not os.path.isfile(path):
        raise InputError(
            f"{path} does not exist: expected the weights of a trained network (ckpt_path; training writes them as "
            "model.pt and model_final.pt in ckpt_dir)."
        )
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and PyTorch raise a dozen types
        found, reason = None, f"it cannot be read: {str(error).splitlines()[0][:100] if str(error) else error!r}"
    else:
        reason = f"it holds a {type(found).__name__}"
    if not isinstance(found, Mapping):
        raise InputError(
            f"{path} has no weights ({reason}): expected the state dict of a trained network (ckpt_path); an exported "
            "network needs exported.json."
        )
    expected = network.state_dict()
    for name in [*expected, *found]:
        have, want = (_weight_shape(weights, name) for weights in (found, expected))
        if have != want:
            raise InputError(
                f"{path} holds the weights of another network: {name} is {have}, expected {want}; give the same config "
                "files and overrides as in training."
            )


def _weight_shape(weights: Mapping[str, Any], name: str) -> str:
    if name not in weights:
        return "missing"
    return (
        " x ".join(map(str, weights[name].shape)) or "one number"
        if isinstance(weights[name], torch.Tensor)
        else "no tensor"
    )
