"""Every method's file trains, and differs from DBiSL in what it says: its terms, its teacher, what is served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigWorkflow

from dbisl.losses import CONSISTENCY_TERMS, LABELED_TERMS, PSEUDO_TERMS, TERMS
from dbisl.networks import DualTaskSegResNet, DualTaskVNet

METHODS = Path(__file__).resolve().parents[2] / "bundle" / "configs" / "methods"
BOTH_TASKS = {"segmentation", "regression"}
# Terms that are computed, whether a teacher is asked, whether it is served, and whether labels are pasted.
EXPECTED: dict[str, tuple[set[str], bool, bool, bool]] = {
    "supervised": ({"segmentation"}, False, False, False),
    "supervised_averaged": ({"segmentation"}, False, True, False),
    "dual_task": (BOTH_TASKS, False, False, False),
    "dtc": ({*BOTH_TASKS, "consistency_segmentation"}, False, False, False),
    "mean_teacher": ({"segmentation", "pseudo_segmentation"}, True, True, False),
    "cross_pseudo": (
        {*BOTH_TASKS, "segmentation_across", "pseudo_segmentation", "pseudo_segmentation_across"},
        False,
        False,
        False,
    ),
    "dbisl": (set(TERMS), True, True, True),
    "ablation_no_cross_supervision": (set(TERMS) - {"segmentation_across", "regression_across"}, True, True, True),
    "ablation_no_consistency": (set(TERMS) - set(CONSISTENCY_TERMS), True, True, True),
    "ablation_no_pseudo_labels": ({*LABELED_TERMS, *CONSISTENCY_TERMS}, False, True, False),
    "ablation_no_uncertainty": (set(TERMS), True, True, True),
    "ablation_one_way": (set(TERMS) - {"regression_across", "consistency_regression"}, True, True, True),
    "ablation_no_teacher": (set(TERMS), False, False, False),
    "ablation_no_copy_paste": (set(TERMS), True, True, False),
    "ablation_no_weak_view": (set(TERMS), True, True, True),
}
# What the pseudo-labels are made of, whether they are hardened, and how much uncertainty counts, where DBiSL's differ.
PSEUDO_LABELS: dict[str, tuple[str, bool, float]] = {
    "mean_teacher": ("fused", False, 1.0),
    "cross_pseudo": ("cross", True, 0.0),
    "ablation_no_uncertainty": ("fused", True, 0.0),
}


# Of which answer the scores are; of the methods that train the regression's segmentation, the fused one.
OF_SEGMENTATION = {"supervised", "supervised_averaged", "mean_teacher", "dual_task", "dtc"}


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
        # Without validation: it would ask the teacher too, as the network that is served.
        **{"validate#dataset#data": [], "num_workers": 0, "patch_size": [16, 16, 16], "amp": False, **options},
    )


@pytest.mark.parametrize("method", EXPECTED)
def test_method_trains(root: Path, demo_data: Path, tmp_path: Path, method: str) -> None:
    terms, asks_teacher, serves_teacher, pastes = EXPECTED[method]
    small = {"network_def#features": 4}
    workflow = prepare(root, demo_data, tmp_path, METHODS / f"{method}.yaml", **small)
    workflow.initialize()
    parser = workflow.parser
    trainer, network = parser.get_parsed_content("train#trainer"), parser.get_parsed_content("network")
    loss = parser.get_parsed_content("loss")
    assert (loss.pseudo_label, loss.harden, loss.gamma) == PSEUDO_LABELS.get(method, ("fused", True, 1.0))
    taught = []
    trainer.teacher.register_forward_hook(lambda *_: taught.append(True)) if trainer.teacher is not None else None
    workflow.run()

    assert set(trainer.state.output["terms"]) & set(TERMS) == terms
    assert bool(taught) == asks_teacher == bool(terms & set(PSEUDO_TERMS) and trainer.teacher is not None)
    assert (parser.get_parsed_content("eval_network") is not network) == serves_teacher
    assert (asks_teacher and trainer.copy_paste.prob > 0) == pastes
    assert isinstance(network, DualTaskVNet)
    assert parser.get_parsed_content("answer") == ("segmentation" if method in OF_SEGMENTATION else "fused")
    assert network.dual != (terms <= {"segmentation", "pseudo_segmentation"})
    served = torch.load(tmp_path / "model_final.pt", weights_only=True)
    expected = parser.get_parsed_content("eval_network").state_dict()
    assert all(torch.equal(served[name], expected[name]) for name in expected)


@pytest.mark.parametrize("method", ["dbisl", "ablation_no_weak_view"])
def test_view_of_the_teacher(root: Path, demo_data: Path, tmp_path: Path, method: str) -> None:
    workflow = prepare(root, demo_data, tmp_path, METHODS / f"{method}.yaml")
    workflow.initialize()
    dataset = workflow.parser.get_parsed_content("unlabeled#dataset")
    views = [(scan["image"], scan["weak_image"]) for scan in (dataset[index] for index in range(len(dataset)))]
    assert all(torch.equal(strong, weak) == (method != "dbisl") for strong, weak in views)


def test_patches_are_as_many_without_unlabeled_scans(root: Path, demo_data: Path, tmp_path: Path) -> None:
    for method in ("supervised", "dual_task", "dbisl"):
        options = {"network_def#features": 4, "unlabeled#dataset#data": []}
        workflow = prepare(root, demo_data, tmp_path, METHODS / f"{method}.yaml", **options)
        workflow.initialize()
        workflow.run()
        assert len(workflow.parser.get_parsed_content("train#trainer").state.output["label"]) == 4


def test_teacher_learns_although_the_student_is_served(root: Path, demo_data: Path, tmp_path: Path) -> None:
    workflow = prepare(root, demo_data, tmp_path, **{"network_def#features": 4, "eval_network": "@network"})
    workflow.initialize()
    teacher = workflow.parser.get_parsed_content("train#trainer").teacher
    before = [parameter.clone() for parameter in teacher.parameters()]
    workflow.run()
    assert not any(torch.equal(old, new) for old, new in zip(before, teacher.parameters(), strict=True))
    checkpoint = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert all(torch.equal(checkpoint["teacher"][name], value) for name, value in teacher.state_dict().items())


@pytest.mark.parametrize("method", ["supervised", "mean_teacher", "dbisl"])
def test_other_backbone_trains_by_the_same_files(root: Path, demo_data: Path, tmp_path: Path, method: str) -> None:
    files = [METHODS.parent / "backbones" / "segresnet.yaml", METHODS / f"{method}.yaml"]
    workflow = prepare(root, demo_data, tmp_path, *files, **{"network_def#init_filters": 8})
    workflow.initialize()
    network = workflow.parser.get_parsed_content("network")
    assert isinstance(network, DualTaskSegResNet) and network.dual == (method == "dbisl")
    workflow.run()
    assert set(workflow.parser.get_parsed_content("train#trainer").state.output["terms"]) >= EXPECTED[method][0]
