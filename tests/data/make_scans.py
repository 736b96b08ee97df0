"""Small scans and data sets that the tests of ``dbisl.data`` read."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from dbisl.data import check_cases
from dbisl.utils import InputError

SHAPE = (6, 7, 8)
"""Voxels of a scan, unless a test says otherwise."""


def refusal(function: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """Return the message of the ``InputError`` that a call raises, after a check that it consists of sentences."""
    with pytest.raises(InputError) as caught:
        function(*args, **kwargs)
    message = str(caught.value)
    assert all(line.endswith(".") for line in message.splitlines())
    return message


def write_scan(path: Path, data: np.ndarray | None = None, affine: np.ndarray | None = None) -> Path:
    """Write a NIfTI file with ``data``, or with noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32) if data is None else data
    nib.save(nib.Nifti1Image(data, np.eye(4) if affine is None else affine), path)
    return path


def truncate(path: Path) -> None:
    """Cut the last quarter off a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])


def write_folder(root: Path, labeled: str, unlabeled: str = "", images: str = "images", labels: str = "labels") -> Path:
    """Write a data set with one case per letter. The files are empty, because ``find_cases`` opens none."""
    for folder in (images, labels):
        (root / folder).mkdir(parents=True)
    for name in labeled + unlabeled:
        (root / images / f"{name}.nii.gz").touch()
    for name in labeled:
        (root / labels / f"{name}.nii.gz").touch()
    return root


def write_datalist(root: Path, **lists: Any) -> Path:
    """Write the datalist ``cases.json``."""
    path = root / "cases.json"
    path.write_text(json.dumps(lists))
    return path


def write_datastore(root: Path, splits: dict[str, str | None], unlabeled: list[str]) -> None:
    """Write studies as MONAI Label leaves them: with final labels and their splits, with proposals, and unopened.

    Args:
        root: the folder of the studies.
        splits: the split of each study with a final label, None if the server gave it none.
        unlabeled: the studies without a final label.
    """
    objects: dict[str, Any] = {}
    for name in [*splits, *unlabeled]:
        write_scan(root / f"{name}.nii.gz")
        labels = {"original": {"ext": ".nii.gz", "info": {}}}
        write_scan(root / "labels" / "original" / f"{name}.nii.gz")
        info = {}
        if name in splits:
            write_scan(root / "labels" / "final" / f"{name}.nii.gz")
            labels["final"] = {"ext": ".nii.gz", "info": {}}
            info = {} if splits[name] is None else {"split": splits[name]}
        objects[name] = {"image": {"ext": ".nii.gz", "info": info}, "labels": labels}
    store = {"name": "", "description": "", "images_dir": ".", "labels_dir": "labels", "objects": objects}
    (root / "datastore_v2.json").write_text(json.dumps(store))


class Study:
    """Data set with the labeled cases ``a`` and ``b``, the unlabeled case ``u`` and the validation case ``v``.

    ``options`` are arguments of ``check_cases`` that fit it.
    """

    def __init__(self, root: Path, caplog: pytest.LogCaptureFixture) -> None:
        self.root, self.caplog = root, caplog
        label = np.random.default_rng(1).integers(0, 2, SHAPE).astype(np.uint8)
        for name in "abuv":
            write_scan(self.image(name))
            if name != "u":
                write_scan(self.label(name), label)
        self.options: dict[str, Any] = {
            "labeled": [self.pair("a"), self.pair("b")],
            "unlabeled": [{"image": str(self.image("u"))}],
            "validation": [self.pair("v")],
            "in_channels": 1,
            "class_names": ["background", "body"],
            "patch_size": [8, 8, 8],
            "patch_divisor": [4, 4, 4],
            "spacing": [1.0, 1.0, 1.0],
        }

    def image(self, name: str) -> Path:
        return self.root / "images" / f"{name}.nii.gz"

    def label(self, name: str) -> Path:
        return self.root / "labels" / f"{name}.nii.gz"

    def pair(self, name: str) -> dict[str, str]:
        return {"image": str(self.image(name)), "label": str(self.label(name))}

    def check(self, **changes: Any) -> None:
        """Call ``check_cases`` with some options changed."""
        check_cases(**{**self.options, **changes})

    def refusal(self, **changes: Any) -> str:
        """Return the message with which ``check_cases`` refuses the study."""
        return refusal(self.check, **changes)

    def assert_accepted(self, **changes: Any) -> None:
        """Check the study, and assert that every case was read."""
        options = {**self.options, **changes}
        counts = [len(options[name]) for name in ("labeled", "unlabeled", "validation")]
        with self.caplog.at_level(logging.INFO):
            self.check(**changes)
        read = "Checked {} labeled, {} unlabeled and {} validation cases".format(*counts)
        assert self.caplog.records[-1].message.startswith(read)
