"""The Dice and the fractions of foreground that are watched in each iteration."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from monai.metrics import DiceHelper
from monai.transforms import AsDiscrete

from dbisl.handlers import Monitor
from tests.engines.small_training import SIZE, PartlyAnnotatedStreams, Streams, make_loss, make_network, make_trainer


def watch(
    pred: list[int], pred_unlabeled: list[int], label: list[int], valid_mask: list[bool] | None = None
) -> dict[str, Any]:
    """Return the output of one iteration after the monitor; each list is one item of one axis, with 3 classes."""

    def logits(classes: list[int]) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.tensor(classes, dtype=torch.long), 3).T[None].float()[: len(classes)]

    output = {
        "pred": logits(pred),
        "pred_unlabeled": logits(pred_unlabeled),
        "label": torch.tensor(label, dtype=torch.uint8)[None, None][: len(label)],
        "valid_mask": None if valid_mask is None else torch.tensor(valid_mask)[None, None],
        "terms": {},
    }
    Monitor()(SimpleNamespace(state=SimpleNamespace(output=output), loss_function=SimpleNamespace(ramp=0.25)))
    return output


def test_dice_and_foreground_of_complete_labels() -> None:
    trainer = make_trainer(make_network(), train_handlers=[Monitor()])
    trainer.run()
    output = trainer.state.output
    one_hot = AsDiscrete(argmax=True, to_onehot=2, dim=1)(output["pred"])
    dice = DiceHelper(include_background=False, get_not_nans=False)(
        one_hot.transpose(0, 1).flatten(1, 2)[None], output["label"].transpose(0, 1).flatten(1, 2)[None]
    )
    assert float(output["terms"]["dice"]) == pytest.approx(float(dice))
    foreground = [output["label"].float().mean(), output["terms"]["foreground_unlabeled"]]
    torch.testing.assert_close(output["terms"]["foreground_labeled"], foreground[0])
    torch.testing.assert_close(output["class_fractions"], torch.tensor([[1 - value, value] for value in foreground]))
    assert "foreground_at_least" not in output["terms"]


def test_dice_and_foreground_of_partly_annotated_labels() -> None:
    valid_mask = torch.rand(2, 1, *SIZE, generator=torch.Generator().manual_seed(1)) < 0.5
    trainer = make_trainer(
        make_network(), PartlyAnnotatedStreams(valid_mask), epoch_length=1, train_handlers=[Monitor()]
    )
    trainer.run()
    output, terms = trainer.state.output, trainer.state.output["terms"]
    label = torch.where(valid_mask, next(iter(Streams()))["labeled"]["label"], 0)
    torch.testing.assert_close(terms["foreground_labeled"], label[valid_mask].float().mean())
    torch.testing.assert_close(terms["foreground_at_least"], label.float().mean())
    predicted = output["pred"].argmax(dim=1, keepdim=True)[valid_mask]
    dice = 2 * (predicted * label[valid_mask]).sum() / (predicted + label[valid_mask]).sum()
    torch.testing.assert_close(terms["dice"], dice)


def test_values_by_hand() -> None:
    annotated = [True] * 5 + [False] * 3
    output = watch(
        pred=[0, 1, 1, 2, 0, 1, 2, 2],
        pred_unlabeled=[0, 0, 0, 0, 0, 1, 1, 2],
        label=[0, 1, 0, 2, 2, 0, 0, 0],
        valid_mask=annotated,
    )
    values = {name: float(value) for name, value in output["terms"].items()}
    assert values == pytest.approx(
        {
            "ramp": 0.25,
            "dice": 2 / 3,  # of class 1 and of class 2: both masks share one voxel and have 1 + 2 voxels
            "foreground_labeled": 3 / 5,
            "foreground_at_least": 3 / 8,
            "foreground_unlabeled": 3 / 8,
        }
    )
    expected = torch.tensor([[5 / 8, 1 / 8, 2 / 8], [5 / 8, 2 / 8, 1 / 8]])
    torch.testing.assert_close(output["class_fractions"], expected)


def test_a_label_without_annotated_voxels_has_no_foreground_and_no_dice() -> None:
    output = watch(pred=[1, 2], pred_unlabeled=[], label=[0, 0], valid_mask=[False, False])
    assert output["terms"]["foreground_labeled"] == 0 and output["terms"]["foreground_at_least"] == 0
    assert output["terms"]["dice"].isnan()


def test_each_stream_may_be_missing() -> None:
    only_labeled = watch(pred=[0, 1], pred_unlabeled=[], label=[0, 1])
    assert set(only_labeled["terms"]) == {"ramp", "dice", "foreground_labeled"}
    only_unlabeled = watch(pred=[], pred_unlabeled=[0, 1], label=[])
    assert set(only_unlabeled["terms"]) == {"ramp", "foreground_unlabeled"}
    assert "class_fractions" not in only_labeled and "class_fractions" not in only_unlabeled


def test_dice_is_undefined_where_label_and_prediction_have_no_structure() -> None:
    class Background(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = torch.nn.Parameter(torch.tensor([5.0, 0.0]))

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.bias.view(1, 2, 1, 1, 1).expand(len(image), 2, *SIZE)

    class WithoutStructure(Streams):
        def __iter__(self) -> Iterator[dict[str, dict[str, Any]]]:
            for batch in super().__iter__():
                yield {"labeled": {**batch["labeled"], "label": torch.zeros_like(batch["labeled"]["label"])}}

    loss = make_loss({"segmentation": 1.0})
    trainer = make_trainer(Background(), WithoutStructure(), loss_function=loss, train_handlers=[Monitor()])
    trainer.run()
    assert trainer.state.output["terms"]["dice"].isnan()
