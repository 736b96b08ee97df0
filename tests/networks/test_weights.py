"""Files that do not hold the weights of a network are named before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dbisl.networks import check_checkpoint
from dbisl.utils import InputError


@pytest.fixture
def network() -> nn.Module:
    return nn.Linear(3, 2)


def saved(path: Path, content: Any) -> Path:
    """Write something with ``torch.save``."""
    torch.save(content, path)
    return path


def test_the_weights_of_the_network_pass_and_are_not_loaded(tmp_path: Path, network: nn.Linear) -> None:
    before = network.weight.clone()
    path = saved(tmp_path / "model.pt", nn.Linear(3, 2).state_dict())
    check_checkpoint(path, network)
    check_checkpoint(str(path), network)
    assert torch.equal(network.weight, before)


@pytest.mark.parametrize("path", ["none.pt", "", None])
def test_a_missing_file(path: Any, network: nn.Module) -> None:
    with pytest.raises(InputError, match=rf"^{path} does not exist: expected the weights of a trained network"):
        check_checkpoint(path, network)


@pytest.mark.parametrize("content", ["text", ""])
def test_a_file_that_cannot_be_read(tmp_path: Path, network: nn.Module, content: str) -> None:
    path = tmp_path / "model.pt"
    path.write_text(content)
    with pytest.raises(InputError, match=r"model\.pt has no weights \(it cannot be read: .+\): expected the state") as (
        caught
    ):
        check_checkpoint(path, network)
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_that_holds_something_else(tmp_path: Path, network: nn.Module) -> None:
    with pytest.raises(InputError, match=r"has no weights \(it holds a list\).* an exported network needs"):
        check_checkpoint(saved(tmp_path / "model.pt", [1]), network)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (nn.Linear(4, 2).state_dict(), "weight is 2 x 4, expected 2 x 3"),
        ({"weight": torch.zeros(2, 3)}, "bias is missing, expected 2"),
        ({**nn.Linear(3, 2).state_dict(), "scale": torch.tensor(1.0)}, "scale is one number, expected missing"),
        ({**nn.Linear(3, 2).state_dict(), "bias": "none"}, "bias is not a tensor, expected 2"),
    ],
)
def test_the_weights_of_another_network(tmp_path: Path, network: nn.Module, content: Any, found: str) -> None:
    with pytest.raises(InputError, match=rf"model\.pt holds the weights of another network: {found}; give the same"):
        check_checkpoint(saved(tmp_path / "model.pt", content), network)


def test_each_file_of_an_ensemble_is_checked(tmp_path: Path, network: nn.Module) -> None:
    good = saved(tmp_path / "good.pt", nn.Linear(3, 2).state_dict())
    bad = saved(tmp_path / "bad.pt", nn.Linear(4, 2).state_dict())
    check_checkpoint([good, good], network)
    with pytest.raises(InputError, match=r"bad\.pt holds the weights of another network"):
        check_checkpoint([good, bad], network)
    with pytest.raises(InputError, match=r"^none\.pt does not exist"):
        check_checkpoint(["none.pt", good], network)
    with pytest.raises(InputError, match="ckpt_path is an empty list"):
        check_checkpoint([], network)
