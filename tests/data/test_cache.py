"""Scans are prepared once, and kept in memory or on disk."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import CacheDataset, PersistentDataset
from monai.transforms import Compose, LoadImaged, Randomizable, RandScaleIntensityd, ScaleIntensityd, Transform

from dbisl.data import cached_dataset, hash_case
from tests.data.make_scans import SHAPE, write_scan

KEYS = ("image", "label")


class CountCases(Transform):
    """Transform that counts the cases that are prepared. It keeps the count outside of itself, as it is hashed."""

    prepared = 0

    def __call__(self, case: dict) -> dict:
        CountCases.prepared += 1
        return case


class AddNoise(Randomizable, Transform):
    """Random transform, which no cache keeps."""

    def __call__(self, case: dict) -> dict:
        return {**case, "image": case["image"] + self.R.normal()}


@pytest.fixture
def cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """Two cases; the count of prepared cases starts at 0."""
    monkeypatch.setattr(CountCases, "prepared", 0)
    label = np.zeros(SHAPE, np.uint8)
    return [
        {
            "image": str(write_scan(tmp_path / "images" / f"{name}.nii.gz")),
            "label": str(write_scan(tmp_path / "labels" / f"{name}.nii.gz", label)),
        }
        for name in "ab"
    ]


def make_transform() -> Compose:
    """Return new transforms, as each run makes them: MONAI's hash of transforms changes once they have been used."""
    return Compose([LoadImaged(KEYS), CountCases(), AddNoise()])


def test_scans_are_kept_in_memory(cases: list[dict[str, str]]) -> None:
    dataset = cached_dataset(cases, make_transform())
    assert type(dataset) is CacheDataset
    assert CountCases.prepared == 2
    first, second = dataset[0]["image"], dataset[0]["image"]
    assert CountCases.prepared == 2
    assert not torch.equal(first, second)  # the random transform still runs


def test_a_part_of_the_scans_is_kept_in_memory(cases: list[dict[str, str]]) -> None:
    dataset = cached_dataset(cases, make_transform(), cache_rate=0.5)
    assert CountCases.prepared == 1
    for _ in range(2):
        assert [dataset[index]["image"].shape for index in range(2)] == [SHAPE, SHAPE]
    assert CountCases.prepared == 3


def test_scans_are_kept_on_disk_for_the_next_run(cases: list[dict[str, str]], tmp_path: Path) -> None:
    cache_dir = tmp_path / "new" / "cache"
    dataset = cached_dataset(cases, make_transform(), cache_dir=cache_dir)
    assert type(dataset) is PersistentDataset
    assert CountCases.prepared == 0
    first = [dataset[index]["label"] for index in range(2)]
    assert CountCases.prepared == 2 and len(list(cache_dir.iterdir())) == 2
    again = cached_dataset(cases, make_transform(), cache_dir=str(cache_dir))
    assert all(torch.equal(again[index]["label"], first[index]) for index in range(2))
    assert not torch.equal(again[0]["image"], again[0]["image"])  # the random transform still runs
    assert CountCases.prepared == 2


def test_a_case_is_prepared_again_after_its_label_has_changed(cases: list[dict[str, str]], tmp_path: Path) -> None:
    cache_dir = tmp_path / "cache"
    before = cached_dataset(cases, make_transform(), cache_dir=cache_dir)
    assert not any(before[index]["label"].any() for index in range(2))
    nib.save(nib.Nifti1Image(np.ones(SHAPE, np.uint8), np.eye(4)), cases[0]["label"])
    after = cached_dataset(cases, make_transform(), cache_dir=cache_dir)
    assert after[0]["label"].all() and not after[1]["label"].any()
    assert CountCases.prepared == 3


def test_cases_are_prepared_again_after_a_transform_has_changed(cases: list[dict[str, str]], tmp_path: Path) -> None:
    def largest(maximum: float, factor: float) -> float:
        steps = [LoadImaged(KEYS), CountCases(), ScaleIntensityd("image", 0.0, maximum)]
        transform = Compose([*steps, RandScaleIntensityd("image", factor, prob=0.0)])
        return float(cached_dataset(cases, transform, cache_dir=tmp_path / "cache")[0]["image"].max())

    assert largest(maximum=1.0, factor=0.1) == pytest.approx(1.0)
    assert largest(maximum=2.0, factor=0.1) == pytest.approx(2.0)
    assert CountCases.prepared == 2
    assert largest(maximum=2.0, factor=0.5) == pytest.approx(2.0)  # the change comes after the first random transform
    assert CountCases.prepared == 2


def test_the_key_of_a_case_follows_from_path_size_and_time(cases: list[dict[str, str]]) -> None:
    first = hash_case(cases[0])
    assert hash_case(dict(cases[0])) == first != hash_case(cases[1])
    stat = os.stat(cases[0]["label"])
    os.utime(cases[0]["label"], ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000_000))
    assert hash_case(cases[0]) != first
