"""Scores on training scans are named as such."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from dbisl.handlers import ModelVersions, warn_of_training_scans


def publish(folder: Path, trained_on: Sequence[Path]) -> Path:
    """Publish weights that were trained on some scans."""
    folder.mkdir()
    torch.save({"weight": torch.zeros(1)}, folder / "new.pt")
    ModelVersions(folder).publish(folder / "new.pt", 0.5, [str(path) for path in trained_on])
    return folder / "model.pt"


def scans(folder: Path, names: str) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{name}.nii.gz" for name in names]
    for path in paths:
        path.touch()
    return paths


def warnings(caplog: pytest.LogCaptureFixture, paths: object, images: Sequence[Path], expected: bool = True) -> str:
    caplog.clear()
    warn_of_training_scans(paths, [{"image": str(image)} for image in images], expected)  # type: ignore[arg-type]
    return caplog.text


def test_scans_of_the_training_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = scans(tmp_path / "scans", "abcd")
    model = publish(tmp_path / "models", images[:3])
    text = warnings(caplog, model, images[1:])
    assert f"{model} was trained on 2 of the 3 scans" in text and str(images[1]) in text
    assert warnings(caplog, model, images[3:]) == ""


def test_links_and_copies_are_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = publish(tmp_path / "models", scans(tmp_path / "scans", "ab"))
    (tmp_path / "linked").symlink_to(tmp_path / "scans")
    assert "was trained on 1 of the 1 scans" in warnings(caplog, model, [tmp_path / "linked" / "a.nii.gz"])
    text = warnings(caplog, model, scans(tmp_path / "copies", "bc"))
    assert "with the names of 1 of the 2 scans" in text and "such as b" in text


def test_each_member_of_an_ensemble_is_checked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = scans(tmp_path / "scans", "ab")
    models = [publish(tmp_path / f"fold{fold}", [image]) for fold, image in enumerate(images)]
    text = warnings(caplog, models, images[:1])
    assert f"{models[0]} was trained on 1 of the 1" in text and str(models[1]) not in text


def test_weights_without_a_record_are_named_only_where_one_is_expected(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = scans(tmp_path / "scans", "a")
    torch.save({}, tmp_path / "model_final.pt")
    assert "model_final.pt has no record of its training scans" in warnings(caplog, tmp_path / "model_final.pt", images)
    assert warnings(caplog, tmp_path / "model_final.pt", images, expected=False) == ""
