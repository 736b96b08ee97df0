"""A data set as its source describes it: the cases, and how to read their channels and labels."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from dbisl.utils import InputError
from scripts.preparing.volumes import Volume


@dataclass(frozen=True)
class Case:
    """A scan, and how to read it.

    Attributes:
        name: name of the case in the new folder.
        channels: one function for each channel, or a single one for a file that holds all of them on its last axis.
        label: function that reads the label; None for an unlabeled scan.
    """

    name: str
    channels: tuple[Callable[[], Volume], ...]
    label: Callable[[], Volume] | None = None


@dataclass(frozen=True)
class Dataset:
    """What a folder holds.

    Attributes:
        cases: the scans, without test scans.
        channels: names of the channels.
        classes: names of the structures with their values in the source; None where only the labels tell.
        regions: names of overlapping regions with their values in the source.
        lists: names of the cases in ``train`` and ``val``, where the source says so.
        only_orientation: whether labels are laid on their images by their axes alone, because their origin is wrong.
        ignore: value in the source that becomes 255, not annotated.
        problems: sentences about files that belong to no case.
    """

    cases: list[Case]
    channels: tuple[str, ...]
    classes: Mapping[str, Sequence[int]] | None = None
    regions: Mapping[str, Sequence[int]] = field(default_factory=dict)
    lists: Mapping[str, list[str]] = field(default_factory=dict)
    only_orientation: bool = False
    ignore: int | None = None
    problems: list[str] = field(default_factory=list)


def only_channels(dataset: Dataset, channels: Sequence[str]) -> Dataset:
    """Return a data set with some of its channels. A case with one file for each channel reads only these.

    Raises:
        InputError: when the data set has no such channel.
    """
    for name in channels:
        if name not in dataset.channels:
            raise InputError(f"channels has {name!r}: expected some of {', '.join(dataset.channels)}.")
    chosen = [dataset.channels.index(name) for name in channels]

    def choose(case: Case) -> Case:
        if len(case.channels) == len(dataset.channels):
            return replace(case, channels=tuple(case.channels[index] for index in chosen))
        return replace(case, channels=(partial(_some_channels, case.channels[0], chosen),))

    return replace(dataset, cases=[choose(case) for case in dataset.cases], channels=tuple(channels))


def _some_channels(read: Callable[[], Volume], chosen: Sequence[int]) -> Volume:
    """Read a volume and keep some channels of its last axis."""
    volume = read()
    if volume.voxels.ndim != 4 or max(chosen) >= volume.voxels.shape[3]:
        raise ValueError(f"The image has the shape {volume.voxels.shape}: expected {max(chosen) + 1} channels or more.")
    voxels = volume.voxels[..., list(chosen)]
    return Volume(voxels[..., 0] if len(chosen) == 1 else voxels, volume.affine)


def files_named(source: Path, pattern: str) -> list[Path]:
    """Return the files at any depth whose names match a regular expression, whole and in any case; none is hidden."""
    matches = re.compile(pattern, re.IGNORECASE).fullmatch
    found = (path for path in source.rglob("*") if not path.name.startswith(".") and matches(path.name))
    return sorted(path for path in found if path.is_file())
