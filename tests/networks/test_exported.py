"""Files that do not hold an exported network are named. ``tests/bundle/test_export.py`` runs exported networks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from dbisl.networks import load_exported
from dbisl.utils import InputError


@pytest.mark.parametrize("name", ["broken.ts", "broken.onnx"])
def test_a_broken_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("no network")
    with pytest.raises(InputError, match=rf"{name} cannot be read \(.+\): expected a complete exported network"):
        load_exported(str(tmp_path / name), "cpu")


def test_a_file_with_another_extension(tmp_path: Path) -> None:
    (tmp_path / "model.pt").touch()
    with pytest.raises(InputError, match=r"model\.pt is not an exported network: expected the extension \.ts"):
        load_exported(str(tmp_path / "model.pt"), "cpu")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model\.ts does not exist"):
        load_exported(str(tmp_path / "model.ts"), "cpu")


def test_a_torchscript_file_is_loaded_in_evaluation_mode(tmp_path: Path) -> None:
    torch.jit.script(nn.Sequential(nn.Dropout(0.5)).train()).save(str(tmp_path / "model.ts"))
    network = load_exported(str(tmp_path / "model.ts"), "cpu")
    assert torch.equal(network(torch.ones(8)), torch.ones(8))
