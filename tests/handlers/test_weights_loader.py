"""Each member of an ensemble gets the weights of its own file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ignite.engine import Engine
from torch import nn

from dbisl.handlers import WeightsLoader
from dbisl.networks import ensemble


def write_weights(folder: Path, *values: float) -> list[str]:
    """Write weights for ``nn.Linear(1, 1)`` that all have one value."""
    paths = []
    for index, value in enumerate(values):
        paths.append(str(folder / f"{index}.pt"))
        torch.save({"weight": torch.full((1, 1), value), "bias": torch.full((1,), value)}, paths[-1])
    return paths


def start(handler: WeightsLoader) -> None:
    engine = Engine(lambda engine, batch: None)
    handler.attach(engine)
    engine.run([0])


def test_one_file_for_one_network(tmp_path: Path) -> None:
    (path,) = write_weights(tmp_path, 3.0)
    network = nn.Linear(1, 1)
    start(WeightsLoader(load_path=path, network=ensemble(network, path), map_location="cpu"))
    assert network.weight.item() == network.bias.item() == 3.0


def test_a_file_for_each_member(tmp_path: Path) -> None:
    paths = write_weights(tmp_path, 1.0, 2.0, 4.0)
    network = ensemble(nn.Linear(1, 1), paths)
    start(WeightsLoader(load_path=paths, network=network, map_location="cpu"))
    assert [output.item() for output in network(torch.ones(1, 1))] == [2.0, 4.0, 8.0]


def test_as_many_files_as_networks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 networks need as many files of weights, got 2"):
        WeightsLoader(load_path=["a.pt", "b.pt"], network=nn.Linear(1, 1), map_location="cpu")
