"""The dictionary transforms."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd, LoadImaged, Orientationd, Spacingd
from scipy.ndimage import distance_transform_edt
from scipy.stats import entropy

from dbisl.transforms import (
    Entropyd,
    FuseTasksd,
    IgnoreToBackgroundd,
    InvertArgmaxd,
    KeepLargestComponentd,
    SignedDistanceMapd,
    SpacingOfImagesd,
)


def test_sdm_is_added_for_each_class_with_the_labels_own_spacing() -> None:
    label = np.zeros((16, 14, 12))
    label[4:10, 4:10, 3:9] = 1
    label[10:12, 4:10, 3:9] = 2
    data = {"label": MetaTensor(torch.from_numpy(label)[None], affine=torch.diag(torch.tensor([2.0, 2, 2, 1])))}
    answer = SignedDistanceMapd("label", sdm_key="sdm", num_classes=4, band=6.0)(data)
    sdm = answer["sdm"].numpy()
    assert sdm.shape == (4, 16, 14, 12)
    for index in range(3):
        mask = label == index
        exact = np.where(mask, distance_transform_edt(mask) - 0.5, 0.5 - distance_transform_edt(~mask)) * 2
        np.testing.assert_allclose(sdm[index], np.clip(exact / 6, -1, 1), atol=1e-3)
    assert (sdm[3] == -1).all()  # a class that this scan does not have
    assert "sdm" not in data


def sdm_of(label: np.ndarray) -> np.ndarray:
    data = {"label": MetaTensor(torch.from_numpy(label)[None], affine=torch.diag(torch.tensor([1.0, 1, 2, 1])))}
    return SignedDistanceMapd("label", sdm_key="sdm", num_classes=2, band=4.0)(data)["sdm"].numpy()


def test_sdm_of_a_partial_label_is_what_every_completion_agrees_on() -> None:
    rng = np.random.default_rng(0)
    truth = np.zeros((14, 14, 10), dtype=np.uint8)
    truth[4:11, 3:9, 1:9] = 1
    partial = truth.copy()
    partial[..., [0, 1, 6, 7, 8]] = 255  # some slices were annotated
    sdm = sdm_of(partial)
    certain = ~np.isnan(sdm)
    completions = [np.zeros_like(truth), np.ones_like(truth), truth]
    completions += [rng.integers(0, 2, truth.shape, dtype=np.uint8) for _ in range(5)]
    maps = np.stack([sdm_of(np.where(partial == 255, completion, partial)) for completion in completions])
    agreed = (maps == maps[0]).all(axis=0)
    assert 0.1 < certain.mean() < 0.9
    assert (certain == agreed).all()
    np.testing.assert_array_equal(sdm[certain], maps[0][certain])


def test_what_was_not_annotated_is_background_in_label_and_answer() -> None:
    label = torch.tensor([[0, 1, 255, 255, 2]])
    answer = torch.tensor([[0.1, 0.1, 0.1, 0.8, 0.2], [0.6, 0.2, 0.9, 0.1, 0.1], [0.3, 0.7, 0.0, 0.1, 0.7]])
    data = IgnoreToBackgroundd(["pred", "absent"], label_key="label")({"label": label, "pred": answer})
    assert data["label"].tolist() == [[0, 1, 0, 0, 2]]
    assert data["pred"].argmax(dim=0).tolist() == [1, 2, 0, 0, 2]
    assert torch.equal(data["pred"][:, [0, 1, 4]], answer[:, [0, 1, 4]])
    whole = IgnoreToBackgroundd("pred", label_key="label")({"label": label % 3, "pred": answer})
    assert torch.equal(whole["pred"], answer) and torch.equal(whole["label"], label % 3)


def test_spacing_leaves_the_paths_that_a_server_puts_beside_an_image(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    nib.save(nib.Nifti1Image(np.random.default_rng(0).random((6, 7, 8), np.float32), np.diag([2.0, 2, 2, 1])), path)
    data = LoadImaged("image", ensure_channel_first=True)({"image": path, "image_path": str(path)})
    with pytest.raises(AttributeError):  # why it is needed
        Spacingd("image", pixdim=(1.0, 1.0, 1.0))(data)
    answer = SpacingOfImagesd("image", pixdim=(1.0, 1.0, 1.0))(data)
    expected = Spacingd("image", pixdim=(1.0, 1.0, 1.0))({"image": data["image"]})["image"]
    torch.testing.assert_close(answer["image"].as_tensor(), expected.as_tensor())
    assert answer["image_path"] == str(path)


def test_unlabeled_scan_passes_unchanged() -> None:
    data = {"image": torch.zeros(1, 4, 4, 4)}
    answer = SignedDistanceMapd("label", sdm_key="sdm", num_classes=2, band=3.0, allow_missing_keys=True)(data)
    assert set(answer) == {"image"}
    with pytest.raises(KeyError):
        SignedDistanceMapd("label", sdm_key="sdm", num_classes=2, band=3.0)(data)


def test_fused_answer_and_maps() -> None:
    torch.manual_seed(0)
    p = torch.randn(2, 4, 5, 6).softmax(0)
    sdm = torch.rand(2, 4, 5, 6) * 2 - 1
    affine = torch.diag(torch.tensor([0.5, 0.5, 2.0, 1.0]))
    p_r = torch.softmax(3 * sdm, 0)
    answer = FuseTasksd("pred", num_classes=2, maps=True)({"pred": MetaTensor(torch.cat([p, p_r, sdm]), affine=affine)})
    fused = (p + p_r) / 2
    plain = {key: value.as_tensor() for key, value in answer.items()}
    torch.testing.assert_close(plain["pred"], fused)
    torch.testing.assert_close(plain["pred_segmentation"], p)
    torch.testing.assert_close(plain["pred_regression"], p_r)
    torch.testing.assert_close(plain["pred_sdm"], sdm)
    entropy = [torch.special.entr(x).sum(0, keepdim=True) for x in (fused, p, p_r)]
    divergence = (entropy[0] - (entropy[1] + entropy[2]) / 2) / np.log(2)
    torch.testing.assert_close(plain["pred_uncertainty"], divergence, atol=1e-6, rtol=0)
    assert all((value.affine == affine).all() for value in answer.values())


def test_tasks_that_agree_are_certain_and_opposites_are_not() -> None:
    p_r, sdm = (torch.tensor([low, 1.0]).view(2, 1, 1, 1) for low in (0.0, -1.0))
    transform = FuseTasksd("pred", num_classes=2, maps=True)
    agree = transform({"pred": torch.cat([p_r, p_r, sdm])})
    differ = transform({"pred": torch.cat([1 - p_r, p_r, sdm])})
    assert float(agree["pred_uncertainty"]) == pytest.approx(0, abs=1e-6)
    assert float(differ["pred_uncertainty"]) == pytest.approx(1, abs=1e-6)


def test_answer_of_one_task_passes() -> None:
    p = torch.rand(3, 4, 4).softmax(0)
    answer = FuseTasksd("pred", num_classes=3, maps=True)({"pred": p})
    torch.testing.assert_close(answer["pred"], p)
    assert "pred_sdm" not in answer and "pred_uncertainty" not in answer


@pytest.mark.parametrize(("name", "channel"), [("fused", 0.4), ("segmentation", 0.2), ("regression", 0.6)])
def test_answer_may_be_that_of_one_task(name: str, channel: float) -> None:
    stacked = torch.tensor([0.2, 0.8, 0.6, 0.4, -1.0, 1.0]).view(6, 1, 1)
    answer = FuseTasksd("pred", num_classes=2, answer=name)({"pred": stacked})
    torch.testing.assert_close(answer["pred"].flatten(), torch.tensor([channel, 1 - channel]))
    with pytest.raises(ValueError, match=r"answer must be one of .*, got 'both'"):
        FuseTasksd("pred", num_classes=2, answer="both")


def test_wrong_number_of_channels_is_named() -> None:
    with pytest.raises(ValueError, match=r"pred has 5 channels; expected 3 \(one task\) or three times as many"):
        FuseTasksd("pred", num_classes=3)({"pred": torch.zeros(5, 2, 2)})


def test_only_the_largest_component_of_the_named_classes_is_kept() -> None:
    classes = torch.zeros(1, 8, 8, 8, dtype=torch.uint8)
    classes[0, :3, :3, :3] = 1
    classes[0, 3, 3, 3] = 1  # touches at a corner
    classes[0, 6:, 6:, 6:] = 1
    classes[0, 6:, :2, :2] = 2
    classes[0, 0, 7, 7] = 2
    expected = classes.clone()
    expected[0, 6:, 6:, 6:] = 0
    answer = KeepLargestComponentd("pred", labels=[1, 3])({"pred": classes})["pred"]
    assert torch.equal(answer, expected)
    assert classes[0, 7, 7, 7] == 1  # the input is left alone


def test_entropy_is_that_of_scipy() -> None:
    p = torch.randn(4, 3, 5, 6, generator=torch.Generator().manual_seed(0)).softmax(0)
    answer = Entropyd("pred")({"pred": p})
    np.testing.assert_allclose(answer["pred_entropy"][0], entropy(p.numpy(), base=4, axis=0), rtol=1e-5)


@pytest.mark.parametrize("axcodes", ["RAS", "LPI", "SAR"])
def test_classes_land_on_the_scans_grid_as_monais_inversion_puts_them(tmp_path: Path, axcodes: str) -> None:
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
    answer = InvertArgmaxd("pred", "image", num_classes=3, slab=500)(case)
    assert answer["pred"].shape == (1, *nib.nifti1.load(tmp_path / "a.nii").shape)
    np.testing.assert_allclose(answer["pred"].affine, nib.nifti1.load(tmp_path / "a.nii").affine, atol=1e-5)
    agree = answer["pred"] == inverted.argmax(dim=0, keepdim=True)
    assert agree.float().mean() > 0.999
    reference = entropy(inverted.numpy(), base=3, axis=0)
    np.testing.assert_allclose(answer["pred_entropy"][0].float(), reference, atol=5e-3)
