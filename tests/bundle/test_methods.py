"""Every method's file trains, and differs from DBiSL as it says: its terms, its teacher, what is evaluated."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigWorkflow

from dbisl.losses import CONSISTENCY_TERMS, PSEUDO_TERMS, TERMS
from dbisl.networks import DualTaskSegResNet, DualTaskVNet

METHODS = Path(__file__).resolve().parents[2] / "bundle" / "configs" / "methods"
BOTH_TASKS = {"segmentation", "regression"}
WEIGHTS = json.loads((METHODS.parent / "train.json").read_text())["loss_weights"]
OF_DBISL = {
    "segmentation",
    "regression",
    "segmentation_across",
    "regression_across",
    "consistency_segmentation",
    "consistency_regression",
    "pseudo_segmentation",
    "pseudo_segmentation_across",
    "pseudo_regression",
}
"""The terms that DBiSL computes."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """How a method differs from DBiSL.

    Attributes:
        terms: the terms that are computed.
        uses_teacher: whether a teacher makes pseudo-labels.
        evaluates_teacher: whether the teacher is the network that is evaluated and published.
        pastes: whether labeled boxes are pasted into unlabeled patches.
        pseudo_label, harden, gamma: what the pseudo-labels are made of, and how much uncertainty counts.
        prediction: what is scored.
    """

    terms: set[str] = field(default_factory=OF_DBISL.copy)
    uses_teacher: bool = True
    evaluates_teacher: bool = True
    pastes: bool = True
    pseudo_label: str = "fused"
    harden: bool = True
    gamma: float = 1.0
    prediction: str = "fused"


EXPECTED = {
    "dbisl": Method(),
    "supervised": Method(
        terms={"segmentation"},
        uses_teacher=False,
        evaluates_teacher=False,
        pastes=False,
        prediction="segmentation",
    ),
    "supervised_averaged": Method(terms={"segmentation"}, uses_teacher=False, pastes=False, prediction="segmentation"),
    "dual_task": Method(
        terms=BOTH_TASKS, uses_teacher=False, evaluates_teacher=False, pastes=False, prediction="segmentation"
    ),
    "dtc": Method(
        terms={*BOTH_TASKS, "consistency_segmentation"},
        uses_teacher=False,
        evaluates_teacher=False,
        pastes=False,
        prediction="segmentation",
    ),
    "mean_teacher": Method(
        terms={"segmentation", "pseudo_segmentation"}, pastes=False, harden=False, prediction="segmentation"
    ),
    "cross_pseudo": Method(
        terms={*BOTH_TASKS, "segmentation_across", "pseudo_segmentation", "pseudo_segmentation_across"},
        uses_teacher=False,
        evaluates_teacher=False,
        pastes=False,
        pseudo_label="cross",
        gamma=0.0,
    ),
    "ablation_no_cross_supervision": Method(terms=OF_DBISL - {"segmentation_across", "regression_across"}),
    "ablation_no_consistency": Method(terms=OF_DBISL - set(CONSISTENCY_TERMS)),
    "ablation_no_pseudo_labels": Method(terms=OF_DBISL - set(PSEUDO_TERMS), uses_teacher=False, pastes=False),
    "ablation_no_uncertainty": Method(gamma=0.0),
    "ablation_one_way": Method(terms=OF_DBISL - {"regression_across", "consistency_regression"}),
    "ablation_no_teacher": Method(uses_teacher=False, evaluates_teacher=False, pastes=False),
    "ablation_no_copy_paste": Method(pastes=False),
    "ablation_no_weak_view": Method(),
}


def test_weights_of_the_default_are_those_of_dbisl() -> None:
    assert {name for name, weight in WEIGHTS.items() if weight > 0} == OF_DBISL


def test_every_method_is_expected() -> None:
    assert {path.stem for path in METHODS.glob("*.yaml")} == set(EXPECTED)


def prepare(root: Path, demo_data: Path, tmp_path: Path, *files: Path, **options: Any) -> ConfigWorkflow:
    return ConfigWorkflow(
        config_file=[str(root / "bundle" / "configs" / "train.json"), *(str(file) for file in files)],
        workflow_type="train",
        bundle_root=str(root / "bundle"),
        logging_file=False,
        **{"dataset_dir": str(demo_data), "output_dir": str(tmp_path), "ckpt_dir": str(tmp_path), "device": "cpu"},
        **{
            "epochs": 1,
            "iterations_per_epoch": 1,
            "warm_up": 0,
            "min_dice": 0,
            "ramp_up": 0,
        },
        # Without validation: the teacher would predict then too, as the network that is evaluated.
        **{"validate#dataset#data": [], "num_workers": 0, "patch_size": [16, 16, 16], "amp": False, **options},
    )


@pytest.mark.parametrize("method", EXPECTED)
def test_method_trains(root: Path, demo_data: Path, tmp_path: Path, method: str) -> None:
    expected = EXPECTED[method]
    workflow = prepare(root, demo_data, tmp_path, METHODS / f"{method}.yaml", features=4)
    workflow.initialize()
    parser = workflow.parser
    trainer, network = parser.get_parsed_content("train#trainer"), parser.get_parsed_content("network")
    loss = parser.get_parsed_content("loss")
    assert (loss.pseudo_label, loss.harden, loss.gamma) == (expected.pseudo_label, expected.harden, expected.gamma)
    predicted = []
    trainer.teacher.register_forward_hook(lambda *_: predicted.append(True)) if trainer.teacher is not None else None
    workflow.run()

    terms = set(trainer.state.output["terms"]) & set(TERMS)
    assert terms == expected.terms
    assert bool(predicted) == expected.uses_teacher == bool(terms & set(PSEUDO_TERMS) and trainer.teacher is not None)
    assert (parser.get_parsed_content("eval_network") is not network) == expected.evaluates_teacher
    assert (expected.uses_teacher and trainer.copy_paste.prob > 0) == expected.pastes
    assert isinstance(network, DualTaskVNet)
    assert parser.get_parsed_content("prediction") == expected.prediction
    assert network.dual_task != (terms <= {"segmentation", "pseudo_segmentation"})
    published = torch.load(tmp_path / "model_final.pt", weights_only=True)
    weights = parser.get_parsed_content("eval_network").state_dict()
    assert all(torch.equal(published[name], weights[name]) for name in weights)


@pytest.mark.parametrize("method", ["dbisl", "ablation_no_weak_view"])
def test_view_of_the_teacher(root: Path, demo_data: Path, tmp_path: Path, method: str) -> None:
    workflow = prepare(root, demo_data, tmp_path, METHODS / f"{method}.yaml", features=4)
    workflow.initialize()
    dataset = workflow.parser.get_parsed_content("unlabeled#dataset")
    teacher_view = workflow.parser.get_parsed_content("train#trainer").teacher_view
    views = [(scan["image"], scan[teacher_view]) for scan in (dataset[index] for index in range(len(dataset)))]
    assert all(torch.equal(students, teachers) == (method != "dbisl") for students, teachers in views)


def test_patches_are_as_many_without_unlabeled_scans(root: Path, demo_data: Path, tmp_path: Path) -> None:
    for method in ("supervised", "dual_task", "dbisl"):
        options = {"features": 4, "unlabeled#dataset#data": []}
        workflow = prepare(root, demo_data, tmp_path, METHODS / f"{method}.yaml", **options)
        workflow.initialize()
        workflow.run()
        assert len(workflow.parser.get_parsed_content("train#trainer").state.output["label"]) == 4


def test_teacher_learns_although_the_student_is_evaluated(root: Path, demo_data: Path, tmp_path: Path) -> None:
    workflow = prepare(root, demo_data, tmp_path, **{"features": 4, "eval_network": "@network"})
    workflow.initialize()
    teacher = workflow.parser.get_parsed_content("train#trainer").teacher
    before = [parameter.clone() for parameter in teacher.parameters()]
    workflow.run()
    assert not any(torch.equal(old, new) for old, new in zip(before, teacher.parameters(), strict=True))
    checkpoint = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert all(torch.equal(checkpoint["teacher"][name], value) for name, value in teacher.state_dict().items())


BACKBONES = {"segresnet": DualTaskSegResNet}
"""Class of the network that each backbone's file makes."""


def test_every_backbone_is_expected() -> None:
    assert {path.stem for path in (METHODS.parent / "backbones").glob("*.yaml")} == set(BACKBONES)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("method", ["supervised", "mean_teacher", "dbisl"])
def test_other_backbones_train_by_the_same_files(
    root: Path, demo_data: Path, tmp_path: Path, backbone: str, method: str
) -> None:
    files = [METHODS.parent / "backbones" / f"{backbone}.yaml", METHODS / f"{method}.yaml"]
    workflow = prepare(root, demo_data, tmp_path, *files, features=8)
    workflow.initialize()
    network = workflow.parser.get_parsed_content("network")
    assert isinstance(network, BACKBONES[backbone]) and network.dual_task == (method == "dbisl")
    workflow.run()
    assert set(workflow.parser.get_parsed_content("train#trainer").state.output["terms"]) >= EXPECTED[method].terms
