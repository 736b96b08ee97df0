"""Previews: what a user sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from ignite.engine import Engine
from matplotlib.image import imread
from monai.data import MetaTensor

from dbisl.handlers import Previews


def case(name: str, spatial: tuple[int, ...], with_truth: bool = True) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    label = torch.zeros(1, *spatial)
    label[:, 4:8, 4:8] = 1
    answer = {
        "image": MetaTensor(
            torch.randn(1, *spatial, generator=generator), meta={"filename_or_obj": f"x/{name}.nii.gz"}
        ),
        "pred": label.clone(),
        "pred_sdm": torch.stack([-label[0], label[0]]),
        "pred_uncertainty": torch.rand(1, *spatial, generator=generator),
    }
    return answer | ({"label": label} if with_truth else {})


def preview(tmp_path: Path, cases: list[dict[str, torch.Tensor]], max_cases: int = 8) -> list[str]:
    engine = Engine(lambda engine, batch: [batch])
    Previews(output_dir=str(tmp_path / "previews"), max_cases=max_cases).attach(engine)
    engine.run(cases)
    return sorted(path.name for path in (tmp_path / "previews").iterdir())


def test_a_picture_a_case_up_to_the_limit(tmp_path: Path) -> None:
    cases = [case(name, (12, 12, 10)) for name in ("b", "a", "c")]
    assert preview(tmp_path, cases, max_cases=2) == ["a.png", "b.png"]


def test_scans_of_one_name_do_not_overwrite_each_other(tmp_path: Path) -> None:
    assert preview(tmp_path, [case("a", (12, 12, 10))] * 2) == ["a (2).png", "a.png"]


def test_panels_stand_side_by_side_and_are_not_empty(tmp_path: Path) -> None:
    preview(
        tmp_path, [case("full", (12, 12, 10)), case("flat", (12, 12)), case("bare", (12, 12, 10), with_truth=False)]
    )
    for name, panels in (("full", 5), ("flat", 5), ("bare", 4)):
        picture = imread(tmp_path / "previews" / f"{name}.png")[..., :3]
        assert picture.shape[1] == panels * 300
        for panel in np.split(picture, panels, axis=1):
            assert len(np.unique(panel.reshape(-1, 3), axis=0)) > 2
