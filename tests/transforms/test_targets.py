"""The target of the regression, also of partly annotated labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.ndimage import distance_transform_edt

from dbisl.data import IGNORE_LABEL
from dbisl.transforms import SignedDistanceMapd


def test_the_map_of_each_class_is_added_in_the_labels_own_spacing() -> None:
    label = np.zeros((16, 14, 12))
    label[4:10, 4:10, 3:9] = 1
    label[10:12, 4:10, 3:9] = 2
    data = {"label": MetaTensor(torch.from_numpy(label)[None], affine=torch.diag(torch.tensor([2.0, 2, 2, 1])))}
    result = SignedDistanceMapd("label", sdm_key="sdm", num_classes=4, band=6.0)(data)
    sdm = result["sdm"].numpy()
    assert sdm.shape == (4, 16, 14, 12)
    for index in range(3):
        mask = label == index
        exact = np.where(mask, distance_transform_edt(mask) - 0.5, 0.5 - distance_transform_edt(~mask)) * 2
        np.testing.assert_allclose(sdm[index], np.clip(exact / 6, -1, 1), atol=1e-3)
    assert (sdm[3] == -1).all()  # a class that this scan does not have
    assert "sdm" not in data


def sdm_of(label: np.ndarray) -> np.ndarray:
    """Return the map of both classes for a label with voxels of 1 x 1 x 2 mm."""
    data = {"label": MetaTensor(torch.from_numpy(label)[None], affine=torch.diag(torch.tensor([1.0, 1, 2, 1])))}
    return SignedDistanceMapd("label", sdm_key="sdm", num_classes=2, band=4.0)(data)["sdm"].numpy()


def test_the_map_of_a_partial_label_is_defined_where_all_completions_agree() -> None:
    rng = np.random.default_rng(0)
    truth = np.zeros((14, 14, 10), dtype=np.uint8)
    truth[4:11, 3:9, 1:9] = 1
    partial = truth.copy()
    partial[..., [0, 1, 6, 7, 8]] = IGNORE_LABEL  # the other slices were annotated
    sdm = sdm_of(partial)
    defined = ~np.isnan(sdm)
    completions = [np.zeros_like(truth), np.ones_like(truth), truth]
    completions += [rng.integers(0, 2, truth.shape, dtype=np.uint8) for _ in range(5)]
    maps = np.stack([sdm_of(np.where(partial == IGNORE_LABEL, completion, partial)) for completion in completions])
    agreed = (maps == maps[0]).all(axis=0)
    assert 0.1 < defined.mean() < 0.9
    assert (defined == agreed).all()
    np.testing.assert_array_equal(sdm[defined], maps[0][defined])


def test_an_unlabeled_scan_passes_unchanged() -> None:
    data = {"image": torch.zeros(1, 4, 4, 4)}
    result = SignedDistanceMapd("label", sdm_key="sdm", num_classes=2, band=3.0, allow_missing_keys=True)(data)
    assert set(result) == {"image"}
    with pytest.raises(KeyError):
        SignedDistanceMapd("label", sdm_key="sdm", num_classes=2, band=3.0)(data)
