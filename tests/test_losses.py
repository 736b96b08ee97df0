"""The loss terms against MONAI's and PyTorch's losses, and which gradients they give."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from monai.losses import DiceCELoss
from torch.nn import functional

from dbisl.bridge import DualTaskOutput, SDMToSegmentation, SegmentationToSDM, signed_distance_map
from dbisl.losses import LABELED_TERMS, TERMS, DBiSLLoss, dice_cross_entropy

CLASSES, SIZE = 3, (8, 10, 8)


def make_loss(weights: dict[str, float], **options: object) -> DBiSLLoss:
    return DBiSLLoss(
        weights=weights,
        sdm_to_segmentation=SDMToSegmentation(5.0),
        segmentation_to_sdm=SegmentationToSDM(3.0),
        **options,  # type: ignore[arg-type]
    )


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Return two labeled and two unlabeled items."""
    torch.manual_seed(0)
    label = torch.randint(0, CLASSES, (2, 1, *SIZE))
    one_hot = functional.one_hot(label[:, 0], CLASSES).movedim(-1, 1)
    return {
        "logits": torch.randn(4, CLASSES, *SIZE),
        "sdm": torch.tanh(torch.randn(4, CLASSES, *SIZE)),
        "label": label,
        "target": signed_distance_map(one_hot, 3.0).half(),
    }


def call(
    loss: DBiSLLoss, batch: dict[str, torch.Tensor], **options: Any
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    return loss(DualTaskOutput(batch["logits"], batch["sdm"]), batch["label"], batch["target"], **options)


def dice_ce(log_p: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
    return dice_cross_entropy(log_p, log_p.exp(), target, weight)


def test_dice_is_monais_and_cross_entropy_is_pytorchs() -> None:
    torch.manual_seed(1)
    logits, label = torch.randn(2, CLASSES, *SIZE), torch.randint(0, CLASSES, (2, 1, *SIZE))
    one_hot = functional.one_hot(label[:, 0], CLASSES).movedim(-1, 1).float()
    monai = DiceCELoss(include_background=True, to_onehot_y=True, softmax=True, batch=True)
    # MONAI leaves the background out of both parts or of neither; ours leaves it out of the Dice only.
    dice = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True, lambda_ce=0)
    expected = dice(logits, label) + functional.cross_entropy(logits, label[:, 0])
    torch.testing.assert_close(dice_ce(logits.log_softmax(1), one_hot), expected)
    assert float(monai(logits, label)) != pytest.approx(float(expected))


def test_uniform_weights_change_nothing() -> None:
    torch.manual_seed(1)
    log_p = torch.randn(2, CLASSES, *SIZE).log_softmax(1)
    target = torch.randn(2, CLASSES, *SIZE).softmax(1)
    weighted = dice_ce(log_p, target, torch.ones(2, 1, *SIZE))
    torch.testing.assert_close(weighted, dice_ce(log_p, target))


def test_voxels_of_weight_zero_do_not_count() -> None:
    torch.manual_seed(1)
    log_p = torch.randn(2, CLASSES, *SIZE).log_softmax(1)
    target = torch.randn(2, CLASSES, *SIZE).softmax(1)
    weight = (torch.rand(2, 1, *SIZE) > 0.5).float()
    changed = torch.where(weight > 0, target, torch.randn(2, CLASSES, *SIZE).softmax(1))
    torch.testing.assert_close(dice_ce(log_p, changed, weight), dice_ce(log_p, target, weight))


def test_labeled_terms_by_hand(batch: dict[str, torch.Tensor]) -> None:
    names = ("segmentation", "regression", "segmentation_across", "regression_across")
    total, terms = call(make_loss(dict(zip(names, (1, 2, 3, 4), strict=True))), batch)
    one_hot = functional.one_hot(batch["label"][:, 0], CLASSES).movedim(-1, 1).float()
    logits, sdm, target = batch["logits"][:2], batch["sdm"][:2], batch["target"].float()
    expected = {
        "segmentation": dice_ce(logits.log_softmax(1), one_hot),
        "regression": (sdm - target).abs().mean(),
        "segmentation_across": dice_ce((5 * sdm).log_softmax(1), one_hot),
        "regression_across": (SegmentationToSDM(3.0)(logits.softmax(1)) - target).abs().mean(),
    }
    assert set(terms) == set(names)
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value)
    torch.testing.assert_close(total, sum(w * expected[n] for n, w in zip(names, (1, 2, 3, 4), strict=True)))


def test_voxels_that_were_not_annotated_count_in_no_labeled_term(batch: dict[str, torch.Tensor]) -> None:
    names = ("segmentation", "regression", "segmentation_across", "regression_across")
    valid_mask = torch.rand(2, 1, *SIZE, generator=torch.Generator().manual_seed(1)) < 0.3
    defined = torch.rand(2, CLASSES, *SIZE, generator=torch.Generator().manual_seed(2)) < 0.5
    target = torch.where(defined, batch["target"], math.nan)
    _, terms = call(make_loss(dict.fromkeys(names, 1)), {**batch, "target": target}, valid_mask=valid_mask)
    logits, sdm = batch["logits"][:2], batch["sdm"][:2]

    def of_annotated(log_p: torch.Tensor) -> torch.Tensor:
        """Return MONAI's loss on only the annotated voxels, put into an image of one row."""
        rows = log_p.movedim(1, -1)[valid_mask[:, 0]].T[None], batch["label"][valid_mask][None, None]
        options = {"include_background": False, "to_onehot_y": True, "softmax": True, "batch": True, "lambda_ce": 0}
        return DiceCELoss(**options)(*rows) + functional.nll_loss(rows[0], rows[1][:, 0])

    r_s = SegmentationToSDM(3.0)(logits.softmax(1))
    expected = {
        "segmentation": of_annotated(logits.log_softmax(1)),
        "regression": (sdm - batch["target"].float()).abs()[defined].mean(),
        "segmentation_across": of_annotated((5 * sdm).log_softmax(1)),
        "regression_across": (r_s - batch["target"].float()).abs()[defined].mean(),
    }
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value)


def test_consistency_by_hand_on_labeled_and_unlabeled(batch: dict[str, torch.Tensor]) -> None:
    weights = {"segmentation": 1, "consistency_segmentation": 1, "consistency_regression": 1}
    _, terms = call(make_loss(weights), batch)
    p, p_r = batch["logits"].softmax(1), (5 * batch["sdm"]).softmax(1)
    torch.testing.assert_close(terms["consistency_segmentation"], ((p - p_r) ** 2).mean())
    r_s = SegmentationToSDM(3.0)(p)
    torch.testing.assert_close(terms["consistency_regression"], ((batch["sdm"] - r_s) ** 2).mean())


@pytest.mark.parametrize("pseudo_label", ["fused", "cross"])
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("with_teacher", [False, True])
def test_pseudo_supervision_by_hand(
    batch: dict[str, torch.Tensor], pseudo_label: str, hard: bool, with_teacher: bool
) -> None:
    weights = {"segmentation": 1, "pseudo_segmentation": 1, "pseudo_segmentation_across": 1, "pseudo_regression": 1}
    loss = make_loss(weights, pseudo_label=pseudo_label, harden=hard, gamma=2.0)
    teacher = DualTaskOutput(torch.randn(2, CLASSES, *SIZE), torch.tanh(torch.randn(2, CLASSES, *SIZE)))
    _, terms = call(loss, batch, teacher=teacher if with_teacher else None)

    source = teacher if with_teacher else DualTaskOutput(batch["logits"][2:], batch["sdm"][2:])
    p, p_r = source.logits.softmax(1), (5 * source.sdm).softmax(1)
    fused = (p + p_r) / 2
    entropy = -(fused * fused.log()).sum(1, keepdim=True) / math.log(CLASSES)
    weight = torch.exp(-2 * entropy)
    for_p, for_r = (fused, fused) if pseudo_label == "fused" else (p_r, p)
    if hard:
        for_p, for_r = (functional.one_hot(t.argmax(1), CLASSES).movedim(-1, 1).float() for t in (for_p, for_r))
    log_p, log_p_r = batch["logits"][2:].log_softmax(1), (5 * batch["sdm"][2:]).log_softmax(1)
    torch.testing.assert_close(terms["pseudo_segmentation"], dice_ce(log_p, for_p, weight))
    torch.testing.assert_close(terms["pseudo_segmentation_across"], dice_ce(log_p_r, for_r, weight))
    error = weight * (batch["sdm"][2:] - SegmentationToSDM(3.0)(for_r)).abs()
    torch.testing.assert_close(terms["pseudo_regression"], error.mean())


def gradients(weights: dict[str, float], batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of the total with respect to the logits and the SDM."""
    logits, sdm = (batch[name].clone().requires_grad_() for name in ("logits", "sdm"))
    total, _ = make_loss(weights)(DualTaskOutput(logits, sdm), batch["label"], batch["target"])
    total.backward()
    return tuple(torch.zeros_like(x) if x.grad is None else x.grad for x in (logits, sdm))  # type: ignore[return-value]


def test_supervision_across_the_bridge_teaches_the_other_task(batch: dict[str, torch.Tensor]) -> None:
    to_logits, to_sdm = gradients({"segmentation_across": 1}, batch)
    assert to_logits.abs().sum() == 0 and to_sdm[:2].abs().sum() > 0
    to_logits, to_sdm = gradients({"regression_across": 1}, batch)
    assert to_logits[:2].abs().sum() > 0 and to_sdm.abs().sum() == 0


def test_consistency_teaches_both_tasks_but_a_pseudo_label_only_the_task_it_supervises(
    batch: dict[str, torch.Tensor],
) -> None:
    supervised = gradients({"segmentation": 1}, batch)
    for name in ("consistency_segmentation", "consistency_regression"):
        both = gradients({"segmentation": 1, name: 1}, batch)
        assert all((a[2:] != b[2:]).any() for a, b in zip(both, supervised, strict=True))
    to_logits, to_sdm = gradients({"segmentation": 1, "pseudo_segmentation": 1}, batch)
    assert to_logits[2:].abs().sum() > 0 and to_sdm.abs().sum() == 0
    to_logits, to_sdm = gradients({"segmentation": 1, "pseudo_regression": 1}, batch)
    assert to_logits[2:].abs().sum() == 0 and to_sdm[2:].abs().sum() > 0


def test_unlabeled_items_get_no_gradient_from_the_labeled_terms(batch: dict[str, torch.Tensor]) -> None:
    weights = {"segmentation": 1, "regression": 1, "segmentation_across": 1, "regression_across": 1}
    for gradient in gradients(weights, batch):
        assert gradient[2:].abs().sum() == 0


def test_the_ramp_scales_the_unlabeled_terms_and_at_zero_they_are_not_computed(batch: dict[str, torch.Tensor]) -> None:
    loss = make_loss(dict.fromkeys(TERMS, 1.0))
    full, terms = call(loss, batch)
    loss.ramp = 0.5
    half, _ = call(loss, batch)
    loss.ramp = 0.0
    none, remaining = call(loss, batch)
    assert set(terms) == set(TERMS)
    assert set(remaining) == {"segmentation", "regression", "segmentation_across", "regression_across"}
    assert not loss.needs_pseudo_labels
    torch.testing.assert_close(half, (full + none) / 2)


def test_terms_with_weight_zero_never_cross_the_bridge(batch: dict[str, torch.Tensor]) -> None:
    """A network with a single task has no SDM, and crossing the bridge would raise."""

    class Forbidden(SegmentationToSDM):
        def forward(self, probabilities: torch.Tensor) -> torch.Tensor:
            raise AssertionError("the bridge was crossed")

    loss = DBiSLLoss(
        weights={"segmentation": 1, "consistency_regression": 0},
        sdm_to_segmentation=SDMToSegmentation(5.0),
        segmentation_to_sdm=Forbidden(3.0),
    )
    total, terms = loss(DualTaskOutput(batch["logits"]), batch["label"])
    assert set(terms) == {"segmentation"}
    torch.testing.assert_close(total, terms["segmentation"])


def test_without_unlabeled_items_no_pseudo_term_is_computed(batch: dict[str, torch.Tensor]) -> None:
    loss = make_loss(dict.fromkeys(TERMS, 1.0))
    _, terms = loss(DualTaskOutput(batch["logits"][:2], batch["sdm"][:2]), batch["label"], batch["target"])
    assert not any(name.startswith("pseudo") for name in terms)
    assert "consistency_segmentation" in terms


def test_a_perfect_prediction_costs_almost_nothing() -> None:
    label = torch.zeros(1, 1, 12, 12, 12, dtype=torch.long)
    label[:, :, 3:9, 3:9, 3:9] = 1
    one_hot = functional.one_hot(label[:, 0], 2).movedim(-1, 1)
    target = signed_distance_map(one_hot, 3.0)
    logits = 60 * (one_hot.float() - 0.5)
    loss = DBiSLLoss(
        weights=dict.fromkeys(TERMS, 1.0),
        sdm_to_segmentation=SDMToSegmentation(20.0),
        segmentation_to_sdm=SegmentationToSDM(3.0),
    )
    prediction = DualTaskOutput(logits.repeat(2, 1, 1, 1, 1), target.repeat(2, 1, 1, 1, 1))
    total, terms = loss(prediction, label, target)
    assert total < 0.5
    assert terms["regression"] == 0 and terms["segmentation"] < 1e-4


def test_loss_is_finite_on_saturated_half_precision_logits() -> None:
    torch.manual_seed(0)
    label = torch.zeros(1, 1, *SIZE, dtype=torch.long)
    logits = (300 * torch.randn(2, CLASSES, *SIZE)).half().requires_grad_()
    sdm = torch.ones(2, CLASSES, *SIZE).half().requires_grad_()
    target = signed_distance_map(functional.one_hot(label[:, 0], CLASSES).movedim(-1, 1), 3.0)
    total, _ = make_loss(dict.fromkeys(TERMS, 1.0), gamma=1.0)(DualTaskOutput(logits, sdm), label, target)
    total.backward()
    assert torch.isfinite(total) and torch.isfinite(logits.grad).all() and torch.isfinite(sdm.grad).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": {"segmentations": 1}}, r"unknown loss terms \['segmentations'\]"),
        ({"weights": {"segmentation": -1}}, "must not be negative"),
        ({"weights": {"consistency_segmentation": 1}}, "at least one of the labeled terms"),
        ({"weights": {"segmentation": 1}, "pseudo_label": "hard"}, "'fused' or 'cross', got 'hard'"),
    ],
)
def test_wrong_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_loss(**options)


def test_missing_maps_are_named(batch: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="the network predicts no SDM"):
        make_loss({"regression": 1})(DualTaskOutput(batch["logits"]), batch["label"], batch["target"])
    with pytest.raises(ValueError, match="need the SDM of the labels"):
        make_loss({"regression": 1})(DualTaskOutput(batch["logits"], batch["sdm"]), batch["label"])


def test_without_labels_only_the_unlabeled_terms_count(batch: dict[str, torch.Tensor]) -> None:
    loss = make_loss(dict.fromkeys(TERMS, 1.0))
    prediction = DualTaskOutput(batch["logits"], batch["sdm"])
    total, terms = loss(prediction, batch["label"][:0])
    assert set(terms) == set(TERMS) - set(LABELED_TERMS)
    torch.testing.assert_close(total, sum(terms.values()))
    loss.ramp = 0.0
    with pytest.raises(ValueError, match="without labels, expected a warm_up of 0"):
        loss(prediction, batch["label"][:0])
