"""Scans that do not fit into memory: ``configs/disk_cache.json``."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

STREAMS = ("train", "unlabeled", "validate")


@pytest.fixture
def data(tmp_path: Path, demo_data: Path) -> Path:
    return Path(shutil.copytree(demo_data, tmp_path / "data"))


def load(root: Path, data: Path, cache_dir: Path, **overrides: object) -> dict[str, list]:
    """The cached part of every case, before anything random."""
    parser = ConfigParser()
    parser.read_config([str(root / "bundle/configs" / name) for name in ("train.json", "disk_cache.json")])
    parser.update({"bundle_root": str(root / "bundle"), "dataset_dir": str(data), "cache_dir": str(cache_dir)})
    parser.update(overrides)
    parser.parse(True)
    datasets = {name: parser.get_parsed_content(f"{name}#dataset") for name in STREAMS}
    return {name: [dataset._cachecheck(case) for case in dataset.data] for name, dataset in datasets.items()}


def test_each_scan_is_prepared_once_and_read_afterwards(root: Path, data: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = load(root, data, cache)
    assert {name: len(cases) for name, cases in first.items()} == {"train": 2, "unlabeled": 3, "validate": 2}
    files = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert len(files) == 7
    second = load(root, data, cache)
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == files
    for name in STREAMS:
        for ours, theirs in zip(first[name], second[name], strict=True):
            for key in ("image", "label", "sdm"):
                assert (key in ours) == (key in theirs)
                if key in ours:
                    torch.testing.assert_close(torch.as_tensor(ours[key]), torch.as_tensor(theirs[key]))
    assert second["train"][0]["label"].dtype == torch.uint8
    assert second["train"][0]["image"].dtype == second["train"][0]["sdm"].dtype == torch.float16


def test_a_corrected_label_or_another_spacing_is_prepared_anew(root: Path, data: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    before = load(root, data, cache)
    labels = sorted((data / "labels").iterdir())
    shutil.copy(labels[1], labels[0])
    after = load(root, data, cache)
    assert len(list(cache.iterdir())) == 8
    assert not torch.equal(torch.as_tensor(before["train"][0]["label"]), torch.as_tensor(after["train"][0]["label"]))
    coarser = load(root, data, cache, spacing=[2.0, 2.0, 2.0])
    assert coarser["validate"][0]["image"].shape[1] < after["validate"][0]["image"].shape[1]
    assert len(list(cache.iterdir())) == 15


def test_a_scan_with_a_partial_label_is_an_unlabeled_one_too(root: Path, data: Path, tmp_path: Path) -> None:
    path = sorted((data / "labels").iterdir())[0]
    label = nib.load(path)
    voxels = np.asarray(label.dataobj).astype(np.uint8)
    voxels[:3] = 255
    nib.save(nib.Nifti1Image(voxels, label.affine), path)
    cases = load(root, data, tmp_path / "cache")
    assert {name: len(of_stream) for name, of_stream in cases.items()} == {"train": 2, "unlabeled": 4, "validate": 2}
