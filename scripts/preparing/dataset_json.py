"""nnU-Net's raw data and the Medical Segmentation Decathlon: folders that a ``dataset.json`` describes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from monai.utils import ensure_tuple

from dbisl.utils import InputError, read_json_object
from scripts.preparing.cases import Case, Dataset, files_named
from scripts.preparing.volumes import label_reader, read_volume

IGNORE = "ignore"
"""Name of the label that nnU-Net leaves out of training; it becomes 255."""
IMAGE_FILE = r"(.+)\.(nii\.gz|nii|nrrd)"


def _dataset_json(source: Path) -> dict[str, Any]:
    """Return the content of ``dataset.json``; empty if there is no such file."""
    path = source / "dataset.json"
    return read_json_object(path, "channels and labels") if path.is_file() else {}


def _described(source: Path) -> dict[str, Any]:
    """Return what ``dataset.json`` says, as arguments of :class:`Dataset`.

    Version 1 and Decathlon map numbers to names, ``{"0": "background"}``; version 2 maps names to a number or, for
    overlapping regions, to several.
    """
    content = _dataset_json(source)
    channels = content.get("channel_names", content.get("modality", {"0": "image"}))
    labels = content.get("labels")
    path = source / "dataset.json"
    if not isinstance(channels, dict) or not all(str(key).isdigit() for key in channels):
        raise InputError(f"{path} has the channels {channels}: expected their names by number, from 0.")
    described: dict[str, Any] = {"channels": tuple(str(channels[key]) for key in sorted(channels, key=int))}
    if not labels:
        return described
    if not isinstance(labels, dict):
        raise InputError(f"{path} has the labels {labels}: expected their names and numbers.")
    if all(str(key).isdigit() for key in labels):
        labels = {name: number for number, name in labels.items()}
    values = {str(name): _numbers(path, name, value) for name, value in labels.items()}
    if IGNORE in values:
        (described["ignore"],) = values.pop(IGNORE)
    values = {name: numbers for name, numbers in values.items() if numbers != [0]}
    if any(len(numbers) > 1 for numbers in values.values()):
        described["regions"] = values
        single = {numbers[0]: name for name, numbers in values.items() if len(numbers) == 1}
        parts = sorted({number for numbers in values.values() for number in numbers})
        values = {single.get(number, f"label {number}"): [number] for number in parts}
    described["classes"] = dict(sorted(values.items(), key=lambda item: item[1]))
    return described


def _numbers(path: Path, name: Any, value: Any) -> list[int]:
    """Return the numbers of a label, of which a region has several."""
    try:
        return [int(number) for number in ensure_tuple(value)]
    except (TypeError, ValueError):
        raise InputError(
            f"{path} gives the label {name!r} the value {value!r}: expected a whole number, or a list of them."
        ) from None


def case_files(folder: Path) -> dict[str, Path]:
    """Return the image files directly in a folder, by name without extension."""
    found = [path for path in files_named(folder, IMAGE_FILE) if path.parent == folder]
    return {re.sub(IMAGE_FILE, r"\1", path.name, flags=re.IGNORECASE): path for path in found}


def has_channel_names(source: Path) -> bool:
    """Return whether images are named by their channel, ``CASE_0000``; a case's own name may end so too."""
    labels = case_files(source / "labelsTr")
    return any(name.endswith("_0000") and name not in labels for name in case_files(source / "imagesTr"))


def read_nnunet(source: Path, spacing: Sequence[float] | None) -> Dataset:
    """Find the cases of nnU-Net's raw data, with one file for each channel."""
    described, labels = _described(source), case_files(source / "labelsTr")
    names = described["channels"]
    parts: dict[str, dict[int, Path]] = {}
    for name, path in case_files(source / "imagesTr").items():
        if re.search(r"_\d{4}$", name):
            parts.setdefault(name[:-5], {})[int(name[-4:])] = path
    if not _dataset_json(source):
        names = tuple(f"channel {number}" for number in range(1 + max(max(found) for found in parts.values())))
        described["channels"] = names if len(names) > 1 else ("image",)
    cases, problems = [], []
    for name, found in sorted(parts.items()):
        if sorted(found) != list(range(len(names))):
            listed = ", ".join(f"_{number:04d}" for number in sorted(found))
            place = source / "imagesTr" / name
            problems.append(f"{place} has the channels {listed}: expected {len(names)}, numbered from _0000.")
            continue
        cases.append(
            Case(
                name,
                tuple(partial(read_volume, found[number]) for number in sorted(found)),
                label_reader(labels.get(name)),
            )
        )
    problems += [f"{labels[name]} has no image in imagesTr: expected one." for name in sorted(set(labels) - set(parts))]
    return Dataset(cases, **described, problems=problems)


def read_decathlon(source: Path, spacing: Sequence[float] | None) -> Dataset:
    """Find the training cases of a Decathlon task, with all channels in one file."""
    labels = case_files(source / "labelsTr")
    cases = [
        Case(name, (partial(read_volume, path),), label_reader(labels.get(name)))
        for name, path in sorted(case_files(source / "imagesTr").items())
    ]
    return Dataset(cases, **_described(source))
