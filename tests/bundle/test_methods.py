"""Every method's file trains, and differs from DBiSL in what it says: its terms, its teacher, what is served."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigWorkflow

from dbisl.losses import CONSISTENCY_TERMS, LABELED_TERMS, PSEUDO_TERMS, TERMS
from dbisl.networks import DualTaskVNet, VNet

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
}


def test_every_method_is_expected() -> None:
    assert {path.stem for path in METHODS.glob("*.yaml")} == set(EXPECTED)


@pytest.mark.parametrize("method", EXPECTED)
def test_method_trains(root: Path, demo_data: Path, tmp_path: Path, method: str) -> None:
    terms, asks_teacher, serves_teacher, pastes = EXPECTED[method]
    workflow = ConfigWorkflow(
        config_file=[str(root / "bundle" / "configs" / "train.json"), str(METHODS / f"{method}.yaml")],
        workflow_type="train",
        bundle_root=str(root / "bundle"),
        logging_file=False,
        **{"dataset_dir": str(demo_data), "output_dir": str(tmp_path), "ckpt_dir": str(tmp_path), "device": "cpu"},
        **{
            "network_def#features": 4,
            "epochs": 1,
            "iterations_per_epoch": 1,
            "warm_up": 0,
            "min_dice": 0,
            "ramp_up": 0,
        },
        # Without validation: it would ask the teacher too, as the network that is served.
        **{"validate#dataset#data": [], "num_workers": 0, "patch_size": [16, 16, 16], "amp": False},
    )
    workflow.initialize()
    parser = workflow.parser
    trainer, network = parser.get_parsed_content("train#trainer"), parser.get_parsed_content("network")
    taught = []
    trainer.teacher.register_forward_hook(lambda *_: taught.append(True)) if trainer.teacher is not None else None
    workflow.run()

    assert set(trainer.state.output["terms"]) & set(TERMS) == terms
    assert bool(taught) == asks_teacher == bool(terms & set(PSEUDO_TERMS) and trainer.teacher is not None)
    assert (parser.get_parsed_content("served_network") is not network) == serves_teacher
    assert (asks_teacher and trainer.copy_paste.prob > 0) == pastes
    assert isinstance(network, VNet if terms <= {"segmentation", "pseudo_segmentation"} else DualTaskVNet)
    served = torch.load(tmp_path / "model_final.pt", weights_only=True)
    expected = parser.get_parsed_content("served_network").state_dict()
    assert all(torch.equal(served[name], expected[name]) for name in expected)
