"""The Dice of validation and of the report: one rule for classes that truth or prediction lack."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.handlers import IgniteMetricHandler, from_engine
from monai.metrics import DiceHelper
from monai.networks.utils import one_hot

from dbisl.metrics import ForegroundDice, MetricsReport, dice_by_class

SIZE = (6, 5, 4)
CLASSES = ["background", "organ", "tumour", "vessel"]


def class_map(seed: int, present: tuple[int, ...]) -> torch.Tensor:
    """Return a random class map, ``1 x *spatial``, of the background and the given classes."""
    generator = torch.Generator().manual_seed(seed)
    return torch.tensor((0, *present))[torch.randint(len(present) + 1, (1, *SIZE), generator=generator)]


CASES = [
    (class_map(0, (1, 2, 3)), class_map(1, (1, 2, 3))),
    (class_map(2, (1, 3)), class_map(3, (1, 2))),  # the tumour is not found, the vessel is predicted without one
    (class_map(4, (1,)), class_map(5, (1,))),
    (class_map(6, ()), class_map(7, ())),  # a case without any structure
]
"""Predictions and references."""


def test_equals_monais_dice_where_the_reference_has_all_classes() -> None:
    prediction, reference = (one_hot(classes[None], 4) for classes in CASES[0])
    expected, _ = DiceHelper(include_background=True, reduction="none")(prediction, reference)
    torch.testing.assert_close(dice_by_class(prediction, reference), expected)


def test_absent_classes_by_hand() -> None:
    prediction = torch.tensor([[0, 0, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])[None]
    reference = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]])[None]
    expected = torch.tensor([[0.5, 0.0, 0.0, torch.nan]])
    torch.testing.assert_close(dice_by_class(prediction, reference), expected, equal_nan=True)
    with pytest.raises(ValueError, match="the same shape"):
        dice_by_class(prediction, reference[:, 1:])


def test_key_metric_of_validation_equals_the_mean_of_the_report(tmp_path: Path) -> None:
    outputs = [
        {"pred": prediction, "label": MetaTensor(reference, affine=torch.eye(4), meta={"filename_or_obj": f"{n}.nii"})}
        for n, (prediction, reference) in enumerate(CASES)
    ]
    engine = Engine(lambda engine, batch: [batch])
    metrics = {
        "channels": IgniteMetricHandler(
            metric_fn=ForegroundDice(),
            output_transform=lambda cases: tuple(
                [one_hot(c[key], 4, dim=0) for c in cases] for key in ("pred", "label")
            ),
        ),
        "maps": IgniteMetricHandler(
            metric_fn=ForegroundDice(num_classes=4), output_transform=from_engine(["pred", "label"])
        ),
    }
    for name, metric in metrics.items():
        metric.attach(engine, name)
    MetricsReport(output_dir=tmp_path, class_names=CLASSES, pred_keys={"fused": "pred"}).attach(engine)
    engine.run(outputs)
    of_report = {(one.class_name, one.metric): one for one in engine.state.report}  # type: ignore[attr-defined]
    mean = of_report["mean", "dice"]
    assert mean.n == 3 and mean.mean < of_report["organ", "dice"].mean
    for name in metrics:
        assert engine.state.metrics[name] == pytest.approx(mean.mean, abs=1e-6)
        details = engine.state.metric_details[name]  # type: ignore[attr-defined]
        assert details.shape == (4, 3)
        by_class = [of_report[class_name, "dice"].mean for class_name in CLASSES[1:]]
        assert details.nanmean(dim=0).tolist() == pytest.approx(by_class)


def test_class_maps_need_the_number_of_classes() -> None:
    with pytest.raises(ValueError, match="num_classes"):
        ForegroundDice()(CASES[0][0][None], CASES[0][1][None])
