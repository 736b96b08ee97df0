"""What the training scans were like, and whether another scan is like them."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from dbisl.data.dicom import DicomSeriesReader, is_dicom_series
from dbisl.data.nifti import READERS, read_nifti
from dbisl.utils.recipe import sha256

logger = logging.getLogger(__name__)

PERCENTILES = (0.5, 50.0, 99.5)
"""The percentiles of the intensities that describe a scan."""
SAMPLE = 2**19
"""Voxels, at most, from which the percentiles of a scan are taken."""
MEASURED = 200
"""Scans, at most, whose voxels are measured after a training."""
DIGITS = 16
"""Hexadecimal digits of the SHA-256 of a scan that the recipe keeps."""

MAX_SPACING, MAX_EXTENT, MAX_CONTRAST = 2.0, 2.0, 4.0
"""Factors by which a scan may be outside of the range of the training scans."""
MAX_SHIFT = 0.25
"""How far intensities may be outside of the range of the training scans, as a part of that whole range."""


@dataclass(frozen=True)
class ScanStatistics:
    """What a scan is like before it is resampled and normalised.

    Attributes:
        spacing: size of a voxel along R, A, S, in millimetres.
        extent: size of the scan along R, A, S, in millimetres.
        percentiles: :data:`PERCENTILES` of the intensities, ``C x 3``.
    """

    spacing: np.ndarray
    extent: np.ndarray
    percentiles: np.ndarray

    @property
    def contrast(self) -> np.ndarray:
        """The span between the outer percentiles of each channel."""
        return self.percentiles[:, -1] - self.percentiles[:, 0]


def measure_scan(path: str | os.PathLike[str], spatial_dims: int, in_channels: int) -> ScanStatistics:
    """Read a scan that can be segmented, and measure it.

    Args:
        path: a NIfTI file, or the folder of a DICOM series.
        spatial_dims: number of spatial axes, 2 or 3.
        in_channels: number of channels; with more than one, they are the last axis of the file.

    Raises:
        ValueError: if the file cannot be read.
    """
    if is_dicom_series(path):
        reader = DicomSeriesReader()
        voxels, header = reader.get_data(reader.read(os.fspath(path)))
        affine = np.asarray(header["affine"], dtype=float)
    else:
        image, voxels, problem = read_nifti(path)
        if image is None:
            raise ValueError(problem)
        affine = image.affine
    shape = voxels.shape[:spatial_dims]
    order = np.argsort(nib.io_orientation(affine)[:spatial_dims, 0])
    spacing = nib.affines.voxel_sizes(affine)[:spatial_dims]
    channels = voxels.reshape(*shape, in_channels)
    step = max(int(np.ceil((np.prod(shape) / SAMPLE) ** (1 / spatial_dims))), 1)
    sample = channels[(slice(None, None, step),) * spatial_dims].reshape(-1, in_channels)
    return ScanStatistics(spacing[order], (spacing * shape)[order], np.percentile(sample, PERCENTILES, axis=0).T)


def describe_scans(
    *,
    labeled: Sequence[Mapping[str, Any]],
    unlabeled: Sequence[Mapping[str, Any]],
    spatial_dims: int,
    in_channels: int,
) -> dict[str, Any]:
    """Describe the scans of a training, for the recipe of its weights.

    A file that cannot be read any more is left out, with a warning.

    Args:
        labeled: training cases with labels, each with the path of its ``"image"``.
        unlabeled: training cases without labels. A scan that is labeled, too, counts as labeled.
        spatial_dims: number of spatial axes, 2 or 3.
        in_channels: number of channels of an image.

    Returns:
        ``labeled`` and ``unlabeled`` (the name of each file, by the first digits of the SHA-256 of its bytes),
        ``measured`` (how many scans the rest is about: at most :data:`MEASURED`, evenly chosen), and the lowest and the
        highest ``spacing``, ``extent``, ``percentiles`` and ``contrast`` of these, as in :class:`ScanStatistics`.
        The measures are missing when no scan could be read.
    """
    of_stream = {"labeled": [str(case["image"]) for case in labeled]}
    of_stream["unlabeled"] = [path for case in unlabeled if (path := str(case["image"])) not in of_stream["labeled"]]
    paths = [path for names in of_stream.values() for path in dict.fromkeys(names)]
    chosen = {paths[int(index)] for index in np.linspace(0, len(paths) - 1, min(len(paths), MEASURED))}

    def read(path: str) -> tuple[str | None, ScanStatistics | None]:
        try:
            measured = measure_scan(path, spatial_dims, in_channels) if path in chosen else None
            return sha256(path)[:DIGITS], measured
        except (OSError, ValueError) as error:
            logger.warning("the recipe leaves out a scan: %s", error)
            return None, None

    with ThreadPoolExecutor(READERS) as pool:
        found = dict(zip(paths, pool.map(read, paths), strict=True))
    described: dict[str, Any] = {
        stream: {digest: Path(path).name for path in names if (digest := found[path][0])}
        for stream, names in of_stream.items()
    }
    scans = [scan for _, scan in found.values() if scan is not None]
    return {**described, "measured": len(scans), **_ranges(scans)}


def unlike_training(scan: ScanStatistics, trained: Mapping[str, Any]) -> str:
    """Return how a scan differs from the training scans of some weights, or an empty string.

    Args:
        scan: the scan.
        trained: the description of the training scans, from :func:`describe_scans`.
    """
    if "spacing" not in trained:
        return ""
    ranges = {name: np.asarray(trained[name], dtype=float) for name in ("spacing", "extent", "contrast", "percentiles")}
    for name, found in (("spacing", scan.spacing), ("extent", scan.extent), ("percentiles", scan.percentiles)):
        if ranges[name][0].shape != found.shape:
            return f"the training scans had {ranges[name][0].shape} values of {name}, this one has {found.shape}"
    problems = []
    if _outside(scan.spacing, ranges["spacing"], MAX_SPACING):
        problems.append(_sentence("voxels", scan.spacing, ranges["spacing"], " mm"))
    if _outside(scan.extent, ranges["extent"], MAX_EXTENT):
        problems.append(_sentence("a size", scan.extent, ranges["extent"], " mm"))
    (low, high), outer = ranges["percentiles"], ranges["percentiles"]
    room = MAX_SHIFT * (outer[1, :, -1] - outer[0, :, 0])[:, None]
    shifted = (scan.percentiles < low - room) | (scan.percentiles > high + room)
    if shifted.any() or _outside(scan.contrast, ranges["contrast"], MAX_CONTRAST):
        found = scan.percentiles[:, [0, -1]].ravel()
        problems.append(_sentence("intensities", found, outer[:, :, [0, -1]].reshape(2, -1), ""))
    return f"unlike the training scans: {'; '.join(problems)}" if problems else ""


def _ranges(scans: Sequence[ScanStatistics]) -> dict[str, list[Any]]:
    """Return the lowest and the highest of each measure, ``2 x ...``."""
    if not scans:
        return {}
    ranges = {}
    for name in ("spacing", "extent", "percentiles", "contrast"):
        values = np.stack([getattr(scan, name) for scan in scans])
        # Five digits are plenty, and a float32 such as 0.800000011920929 is no longer than 0.8.
        ends = np.stack([values.min(axis=0), values.max(axis=0)])
        ranges[name] = np.vectorize(lambda number: float(f"{number:.5g}"))(ends).tolist()
    return ranges


def _outside(values: np.ndarray, ends: np.ndarray, factor: float) -> bool:
    """Return whether a value is outside of its range by more than a factor."""
    return bool(((values < ends[0] / factor) | (values > ends[1] * factor)).any())


def _sentence(name: str, values: np.ndarray, ends: np.ndarray, unit: str) -> str:
    """Return a clause that gives what was found, and the range of the training scans."""
    found = ", ".join(f"{value:.4g}" for value in values)
    ranges = ((f"{low:.4g}", f"{high:.4g}") for low, high in ends.T)
    expected = ", ".join(low if low == high else f"{low} to {high}" for low, high in ranges)
    return f"{name} of {found}{unit}, there {expected}{unit}"
