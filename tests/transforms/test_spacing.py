"""Resampling of scans that a server sends."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import LoadImaged, Spacingd

from dbisl.transforms import SpacingOfImagesd


def test_paths_beside_an_image_pass_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    nib.save(nib.Nifti1Image(np.random.default_rng(0).random((6, 7, 8), np.float32), np.diag([2.0, 2, 2, 1])), path)
    data = LoadImaged("image", ensure_channel_first=True)({"image": path, "image_path": str(path)})
    with pytest.raises(AttributeError):  # why ours is needed
        Spacingd("image", pixdim=(1.0, 1.0, 1.0))(data)
    result = SpacingOfImagesd("image", pixdim=(1.0, 1.0, 1.0))(data)
    expected = Spacingd("image", pixdim=(1.0, 1.0, 1.0))({"image": data["image"]})["image"]
    torch.testing.assert_close(result["image"].as_tensor(), expected.as_tensor())
    assert result["image_path"] == str(path)
