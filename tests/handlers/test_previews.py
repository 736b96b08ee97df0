"""Pictures of an evaluation's worst cases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from matplotlib.image import imread
from monai.data import MetaTensor
from monai.networks.utils import one_hot
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dbisl.handlers import Previews

CLASSES = ["background", "organ"]


def make_case(
    name: str | None, spatial: tuple[int, ...] = (12, 12, 10), shift: int = 0, with_truth: bool = True
) -> dict[str, torch.Tensor]:
    """Return what an evaluator's output holds for one case, whose prediction is some voxels beside the truth."""
    generator = torch.Generator().manual_seed(0)
    label = torch.zeros(1, *spatial)
    label[:, 4:8, 4:8] = 1
    image = torch.randn(1, *spatial, generator=generator)
    maps = {
        "image": image if name is None else MetaTensor(image, meta={"filename_or_obj": f"x/{name}.nii.gz"}),
        "pred": label.roll(shift, dims=1),
        "pred_sdm": torch.stack([-label[0], label[0]]),
        "pred_uncertainty": torch.rand(1, *spatial, generator=generator),
    }
    return maps | ({"label": label} if with_truth else {})


def draw(folder: Path, cases: list[dict[str, torch.Tensor]], max_cases: int = 8, **changes: Any) -> list[str]:
    """Draw the cases of one epoch and return the names of the pictures."""
    options = {"class_names": CLASSES, "max_cases": max_cases, "spacing": [1.0, 1.0, 1.0], "output_dir": str(folder)}
    engine = Engine(lambda engine, batch: [batch])
    Previews(**{**options, **changes}).attach(engine)
    engine.run(cases)
    return sorted(path.name for path in folder.glob("*.png"))


def test_the_worst_cases_come_first_up_to_the_limit(tmp_path: Path) -> None:
    cases = [make_case("good"), make_case("bad", shift=3), make_case("fair", shift=1), make_case("missed", shift=5)]
    assert draw(tmp_path, cases, max_cases=3) == ["01_missed.png", "02_bad.png", "03_fair.png"]
    assert draw(tmp_path / "none", cases, max_cases=0) == []


def test_a_case_with_a_channel_per_class_is_ranked_the_same(tmp_path: Path) -> None:
    cases = [make_case("good"), make_case("bad", shift=3)]
    for case in cases:
        case |= {key: one_hot(case[key], 2, dim=0) for key in ("pred", "label")}
    assert draw(tmp_path, cases) == ["01_bad.png", "02_good.png"]


def test_pictures_of_an_earlier_evaluation_go_and_other_files_stay(tmp_path: Path) -> None:
    (tmp_path / "mine.png").touch()
    draw(tmp_path, [make_case("a"), make_case("b", shift=1)])
    assert draw(tmp_path, [make_case("b")]) == ["01_b.png", "mine.png"]


def test_cases_without_truth_or_structure_come_last(tmp_path: Path) -> None:
    empty = make_case("empty")
    empty |= {key: torch.zeros_like(empty[key]) for key in ("pred", "label")}
    cases = [make_case("bare", with_truth=False), empty, make_case("good")]
    assert draw(tmp_path, cases) == ["01_good.png", "02_bare.png", "03_empty.png"]


def test_cases_of_a_cache_without_metadata_have_numbers(tmp_path: Path) -> None:
    assert draw(tmp_path, [make_case(None), make_case(None, shift=2)]) == ["01_case_2.png", "02_case_1.png"]


@pytest.mark.parametrize(
    ("spatial", "with_truth", "panels"), [((12, 12, 10), True, 6), ((12, 12), True, 6), ((12, 12, 10), False, 4)]
)
def test_panels_stand_side_by_side_and_are_not_empty(
    tmp_path: Path, spatial: tuple[int, ...], with_truth: bool, panels: int
) -> None:
    draw(tmp_path, [make_case("a", spatial, 1, with_truth)])
    picture = imread(tmp_path / "01_a.png")[..., :3]
    assert picture.shape[1] == panels * 300
    colours = np.round(255 * picture[60:-60]).astype(int) @ (1, 256, 256**2)
    assert all(len(np.unique(panel)) > 2 for panel in np.split(colours, panels, axis=1))


def test_tensorboard_gets_the_same_pictures(tmp_path: Path) -> None:
    cases = [make_case("good"), make_case("bad", shift=3)]
    draw(tmp_path, cases, log_dir=str(tmp_path))
    events = EventAccumulator(str(tmp_path)).Reload()
    assert events.Tags()["images"] == ["validation/01", "validation/02"]
    (image,) = events.Images("validation/01")
    file = imread(tmp_path / "01_bad.png")
    assert (image.step, image.height, image.width) == (1, *file.shape[:2])


def test_only_slices_of_the_worst_cases_stay_in_memory(tmp_path: Path) -> None:
    kept: list[int] = []
    handler = Previews(class_names=CLASSES, max_cases=2, spacing=[1.0] * 3, output_dir=str(tmp_path))

    def count(engine: Engine) -> None:
        kept.append(sum(cut.image.size for _, cut in handler._worst))

    engine = Engine(lambda engine, batch: [batch])
    handler.attach(engine)
    engine.add_event_handler(Events.ITERATION_COMPLETED, count)
    engine.run([make_case(str(shift), shift=shift) for shift in range(5)])
    assert kept == [144, 288, 288, 288, 288]
