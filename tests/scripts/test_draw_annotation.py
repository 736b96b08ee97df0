"""The picture of the annotation guide."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.image import imread

from scripts.draw_annotation import draw
from scripts.make_demo_data import make_demo_data


def test_picture_shows_the_least_certain_scan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_demo_data(str(tmp_path / "data"), num_labeled=1, num_unlabeled=0, num_validation=3)
    draw(str(tmp_path / "data"), str(tmp_path / "annotation.png"))
    first, second = imread(tmp_path / "annotation.png").shape[:2]
    assert 3 * first < second and (tmp_path / "annotation.png").stat().st_size > 10_000
    name, value, median = capsys.readouterr().out.strip().splitlines()[-1].replace(",", ":").split(":")
    assert Path(name).name.startswith("val_") and float(value) >= float(median.split()[-1]) > 0
