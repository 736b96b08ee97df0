"""Pictures of an evaluation's cases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from ignite.engine import Engine
from matplotlib.image import imread
from monai.data import MetaTensor

from dbisl.handlers import Previews


def make_case(name: str, spatial: tuple[int, ...], with_truth: bool = True) -> dict[str, torch.Tensor]:
    """Return what an evaluator's output holds for one case."""
    generator = torch.Generator().manual_seed(0)
    label = torch.zeros(1, *spatial)
    label[:, 4:8, 4:8] = 1
    maps = {
        "image": MetaTensor(
            torch.randn(1, *spatial, generator=generator), meta={"filename_or_obj": f"x/{name}.nii.gz"}
        ),
        "pred": label.clone(),
        "pred_sdm": torch.stack([-label[0], label[0]]),
        "pred_uncertainty": torch.rand(1, *spatial, generator=generator),
    }
    return maps | ({"label": label} if with_truth else {})


def draw(tmp_path: Path, cases: list[dict[str, torch.Tensor]], max_cases: int = 8) -> list[str]:
    """Draw the cases of one epoch and return the names of the pictures."""
    engine = Engine(lambda engine, batch: [batch])
    Previews(output_dir=str(tmp_path / "previews"), max_cases=max_cases).attach(engine)
    engine.run(cases)
    return sorted(path.name for path in (tmp_path / "previews").iterdir())


def test_one_picture_per_case_up_to_the_limit(tmp_path: Path) -> None:
    cases = [make_case(name, (12, 12, 10)) for name in ("b", "a", "c")]
    assert draw(tmp_path, cases, max_cases=2) == ["a.png", "b.png"]


def test_scans_with_the_same_name_do_not_overwrite_each_other(tmp_path: Path) -> None:
    assert draw(tmp_path, [make_case("a", (12, 12, 10))] * 2) == ["a (2).png", "a.png"]


def test_panels_stand_side_by_side_and_are_not_empty(tmp_path: Path) -> None:
    full, flat = make_case("full", (12, 12, 10)), make_case("flat", (12, 12))
    draw(tmp_path, [full, flat, make_case("bare", (12, 12, 10), with_truth=False)])
    for name, panels in (("full", 5), ("flat", 5), ("bare", 4)):
        picture = imread(tmp_path / "previews" / f"{name}.png")[..., :3]
        assert picture.shape[1] == panels * 300
        colours = np.round(255 * picture).astype(int) @ (1, 256, 256**2)
        assert all(len(np.unique(panel)) > 2 for panel in np.split(colours, panels, axis=1))
