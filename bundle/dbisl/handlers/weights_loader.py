"""Loading the weights of a network, or of each member of an ensemble."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from ignite.engine import Engine
from monai.handlers import CheckpointLoader
from monai.utils import ensure_tuple
from torch import nn

from dbisl.networks.ensembles import EnsembleNetwork


class WeightsLoader:
    """MONAI's ``CheckpointLoader`` for a network, or one for each member of an ensemble.

    Args:
        load_path: the file of the weights, or a list with a file for each member of the ensemble.
        network: the network as :func:`dbisl.networks.ensemble` gives it for the same ``load_path``.
        map_location: device to which the weights are loaded.

    Raises:
        ValueError: if there are not as many files as networks.
    """

    def __init__(
        self,
        *,
        load_path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        network: nn.Module,
        map_location: Any,
    ) -> None:
        members = list(network.members) if isinstance(network, EnsembleNetwork) else [network]
        paths = ensure_tuple(load_path)
        if len(paths) != len(members):
            raise ValueError(f"{len(members)} networks need as many files of weights, got {len(paths)}.")
        self.loaders = [
            CheckpointLoader(load_path=path, load_dict={"model": member}, map_location=map_location)
            for path, member in zip(paths, members, strict=True)
        ]

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator: the weights are loaded when it starts."""
        for loader in self.loaders:
            loader.attach(engine)
