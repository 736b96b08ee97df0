"""What becomes of a prediction: fused tasks, entropy, classes on the scan's own grid, largest components."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd, LoadImaged, Orientationd, Spacingd
from scipy.stats import entropy

from dbisl.data import IGNORE_LABEL
from dbisl.transforms import (
    Entropyd,
    FuseTasksd,
    IgnoreToBackgroundd,
    InvertArgmaxd,
    KeepLargestComponentd,
)


def test_voxels_that_were_not_annotated_become_background_in_label_and_prediction() -> None:
    label = torch.tensor([[0, 1, IGNORE_LABEL, IGNORE_LABEL, 2]])
    pred = torch.tensor([[0.1, 0.1, 0.1, 0.8, 0.2], [0.6, 0.2, 0.9, 0.1, 0.1], [0.3, 0.7, 0.0, 0.1, 0.7]])
    data = IgnoreToBackgroundd(["pred", "absent"], label_key="label")({"label": label, "pred": pred})
    assert data["label"].tolist() == [[0, 1, 0, 0, 2]]
    assert data["pred"].argmax(dim=0).tolist() == [1, 2, 0, 0, 2]
    assert torch.equal(data["pred"][:, [0, 1, 4]], pred[:, [0, 1, 4]])


def test_a_completely_annotated_label_and_its_prediction_pass_unchanged() -> None:
    label, pred = torch.tensor([[0, 1, 0, 0, 2]]), torch.rand(3, 5)
    data = IgnoreToBackgroundd("pred", label_key="label")({"label": label, "pred": pred})
    assert torch.equal(data["pred"], pred) and torch.equal(data["label"], label)


def test_fused_prediction_and_its_parts() -> None:
    torch.manual_seed(0)
    p = torch.randn(2, 4, 5, 6).softmax(0)
    sdm = torch.rand(2, 4, 5, 6) * 2 - 1
    affine = torch.diag(torch.tensor([0.5, 0.5, 2.0, 1.0]))
    p_r = torch.softmax(3 * sdm, 0)
    result = FuseTasksd("pred", num_classes=2, maps=True)({"pred": MetaTensor(torch.cat([p, p_r, sdm]), affine=affine)})
    fused = (p + p_r) / 2
    maps = {key: value.as_tensor() for key, value in result.items()}
    torch.testing.assert_close(maps["pred"], fused)
    torch.testing.assert_close(maps["pred_segmentation"], p)
    torch.testing.assert_close(maps["pred_regression"], p_r)
    torch.testing.assert_close(maps["pred_sdm"], sdm)
    entropies = [torch.special.entr(x).sum(0, keepdim=True) for x in (fused, p, p_r)]
    divergence = (entropies[0] - (entropies[1] + entropies[2]) / 2) / np.log(2)
    torch.testing.assert_close(maps["pred_uncertainty"], divergence, atol=1e-6, rtol=0)
    assert all((value.affine == affine).all() for value in result.values())


def test_tasks_that_agree_are_certain_and_opposite_tasks_are_not() -> None:
    p_r, sdm = (torch.tensor([low, 1.0]).view(2, 1, 1, 1) for low in (0.0, -1.0))
    transform = FuseTasksd("pred", num_classes=2, maps=True)
    agree = transform({"pred": torch.cat([p_r, p_r, sdm])})
    differ = transform({"pred": torch.cat([1 - p_r, p_r, sdm])})
    assert float(agree["pred_uncertainty"]) == pytest.approx(0, abs=1e-6)
    assert float(differ["pred_uncertainty"]) == pytest.approx(1, abs=1e-6)


def test_the_prediction_of_a_single_task_passes_unchanged() -> None:
    p = torch.rand(3, 4, 4).softmax(0)
    result = FuseTasksd("pred", num_classes=3, maps=True)({"pred": p})
    torch.testing.assert_close(result["pred"], p)
    assert "pred_sdm" not in result and "pred_uncertainty" not in result


@pytest.mark.parametrize(("prediction", "background"), [("fused", 0.4), ("segmentation", 0.2), ("regression", 0.6)])
def test_the_prediction_may_come_from_one_task(prediction: str, background: float) -> None:
    stacked = torch.tensor([0.2, 0.8, 0.6, 0.4, -1.0, 1.0]).view(6, 1, 1)
    result = FuseTasksd("pred", num_classes=2, prediction=prediction)({"pred": stacked})
    torch.testing.assert_close(result["pred"].flatten(), torch.tensor([background, 1 - background]))


def test_an_unknown_prediction_is_refused() -> None:
    with pytest.raises(ValueError, match=r"prediction must be one of .*, got 'both'"):
        FuseTasksd("pred", num_classes=2, prediction="both")


def test_wrong_number_of_channels_is_named() -> None:
    with pytest.raises(ValueError, match=r"pred has 5 channels; expected 3 \(one task\) or three times as many"):
        FuseTasksd("pred", num_classes=3)({"pred": torch.zeros(5, 2, 2)})


def test_only_the_largest_component_of_the_given_classes_is_kept() -> None:
    classes = torch.zeros(1, 8, 8, 8, dtype=torch.uint8)
    classes[0, :3, :3, :3] = 1
    classes[0, 3, 3, 3] = 1  # touches at a corner
    classes[0, 6:, 6:, 6:] = 1
    classes[0, 6:, :2, :2] = 2
    classes[0, 0, 7, 7] = 2
    expected = classes.clone()
    expected[0, 6:, 6:, 6:] = 0
    kept = KeepLargestComponentd("pred", labels=[1, 3])({"pred": classes})["pred"]
    assert torch.equal(kept, expected)
    assert classes[0, 7, 7, 7] == 1  # the input stays unchanged


def test_entropy_is_scipys() -> None:
    p = torch.randn(4, 3, 5, 6, generator=torch.Generator().manual_seed(0)).softmax(0)
    result = Entropyd("pred")({"pred": p})
    np.testing.assert_allclose(result["pred_entropy"][0], entropy(p.numpy(), base=4, axis=0), rtol=1e-5)


@pytest.mark.parametrize("axcodes", ["RAS", "LPI", "SAR"])
def test_classes_on_the_scans_grid_are_those_of_monais_inversion(tmp_path: Path, axcodes: str) -> None:
    turn = nib.orientations.axcodes2ornt(axcodes)
    affine = np.diag([0.9, 1.3, 2.1, 1.0])
    affine[:3, 3] = -5, 7, 11
    scan = nib.nifti1.Nifti1Image(np.random.default_rng(0).normal(size=(20, 17, 9)).astype(np.float32), affine)
    nib.save(scan.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(affine), turn)), tmp_path / "a.nii")
    forward = Compose(
        [
            LoadImaged("image", reader="NibabelReader", ensure_channel_first=True),
            Orientationd("image", axcodes="RAS", labels=None),
            Spacingd("image", pixdim=(1.0, 1.0, 1.0)),
        ]
    )
    case = forward({"image": str(tmp_path / "a.nii")})
    noise = torch.randn(3, *case["image"].shape[1:], generator=torch.Generator().manual_seed(1))
    case["pred"] = MetaTensor(torch.softmax(2 * noise, dim=0), meta=case["image"].meta)
    inverted = Invertd("pred", forward, "image", nearest_interp=False)(case)["pred"]
    result = InvertArgmaxd("pred", "image", num_classes=3, slab=500)(case)
    assert result["pred"].shape == (1, *nib.nifti1.load(tmp_path / "a.nii").shape)
    np.testing.assert_allclose(result["pred"].affine, nib.nifti1.load(tmp_path / "a.nii").affine, atol=1e-5)
    agree = result["pred"] == inverted.argmax(dim=0, keepdim=True)
    assert agree.float().mean() > 0.999
    reference = entropy(inverted.numpy(), base=3, axis=0)
    np.testing.assert_allclose(result["pred_entropy"][0].float(), reference, atol=5e-3)
