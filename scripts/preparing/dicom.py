"""Find the series and the segmentations among DICOM files, and read them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pydicom
from monai.transforms import LoadImage

from dbisl.data import DicomSeriesReader
from dbisl.data.dicom import check_series, is_dicom_file
from dbisl.utils import first_line
from scripts.preparing.volumes import Volume

SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
"""SOP class of a DICOM segmentation (DICOM-SEG)."""
TAGS = ["SOPClassUID", "SeriesInstanceUID", "PatientID", "ReferencedSeriesSequence", "SegmentSequence", "Rows"]
FAR = 0.25
"""Part of a voxel by which a pixel of a segmentation may lie off the image's grid."""


@dataclass
class Series:
    """The files of a DICOM series, and of the segmentations that refer to it.

    Attributes:
        uid: SeriesInstanceUID.
        patient: PatientID.
        slices: files of the series.
        segmentations: DICOM-SEG files that refer to it.
    """

    uid: str
    patient: str
    slices: list[Path] = field(default_factory=list)
    segmentations: list[Path] = field(default_factory=list)


def dicom_files(folder: Path) -> Iterator[Path]:
    """Yield the DICOM files in a folder and below it, in the order of their paths."""
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(place, name)
            if not name.startswith(".") and name.upper() != "DICOMDIR" and is_dicom_file(path):
                yield path


def find_series(folder: Path) -> tuple[list[Series], dict[str, int], list[str]]:
    """Sort the DICOM files of a folder into series, by their headers.

    Returns:
        The series; the numbers that its segments' names get in the labels, from 1, in the order of the names; and a
        sentence for each file that cannot be used.
    """
    found: dict[str, Series] = {}
    segmentations: list[tuple[Path, str]] = []
    names: set[str] = set()
    problems = []
    for path in dicom_files(folder):
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=TAGS)
            if header.get("SOPClassUID") == SEGMENTATION:
                names |= {str(segment.SegmentLabel) for segment in header.SegmentSequence}
                segmentations.append((path, str(header.ReferencedSeriesSequence[0].SeriesInstanceUID)))
            elif "Rows" in header:  # other objects, such as reports, have no pixels
                uid = str(header.SeriesInstanceUID)
                found.setdefault(uid, Series(uid, str(header.get("PatientID") or ""))).slices.append(path)
        except Exception as error:  # pydicom raises a dozen types on a broken file
            problems.append(f"{path} cannot be used ({first_line(error)}): expected a complete DICOM file.")
    for path, uid in segmentations:
        if uid in found:
            found[uid].segmentations.append(path)
        else:
            problems.append(f"{path} refers to the series {uid}, which is not in {folder}: expected its slices too.")
    return list(found.values()), {name: number for number, name in enumerate(sorted(names), start=1)}, problems


@lru_cache(maxsize=1)
def read_series(slices: tuple[Path, ...]) -> Volume:
    """Read a DICOM series whose slices may lie among other files. The last one is kept, for its segmentations.

    Raises:
        ValueError: when the series is not complete; the sentence says why.
    """
    with TemporaryDirectory() as folder:  # the reader takes all files of a folder
        for number, path in enumerate(slices):
            Path(folder, f"{number:06d}.dcm").symlink_to(path.resolve())
        try:
            check_series(Path(folder), 3, 1)
        except ValueError as error:
            sentence = str(error).replace(folder, str(slices[0].parent))
            for number, path in enumerate(slices):
                sentence = sentence.replace(f"{number:06d}.dcm", path.name)
            raise ValueError(sentence) from None
        image = _loader()(folder)
    return Volume(image.numpy(), image.affine.numpy())


@lru_cache
def _loader() -> LoadImage:
    """Return the one loader of all series: MONAI's reader warns about missing decoders each time it is made."""
    return LoadImage(reader=DicomSeriesReader(), image_only=True)


def read_segmentations(paths: Sequence[Path], slices: tuple[Path, ...], numbers: Mapping[str, int]) -> Volume:
    """Read the segmentations of a series as a label on the grid of the series.

    A fractional segmentation counts from half its largest value.

    Args:
        paths: DICOM-SEG files.
        slices: files of the series.
        numbers: number of each segment's name in the label.

    Raises:
        ValueError: when two segments mark the same voxel, or a segment lies off the grid of the image.
    """
    image = read_series(slices)
    label = np.zeros(image.voxels.shape[:3], dtype=np.uint8)
    for path in paths:
        data = pydicom.dcmread(path)
        names = {int(segment.SegmentNumber): str(segment.SegmentLabel) for segment in data.SegmentSequence}
        frames = data.pixel_array.reshape(-1, data.Rows, data.Columns)
        least = float(data.MaximumFractionalValue) / 2 if data.SegmentationType == "FRACTIONAL" else 0.5
        for frame, groups in zip(frames, data.PerFrameFunctionalGroupsSequence, strict=True):
            identified = _of_frame(data, groups, "SegmentIdentificationSequence")
            name = names[int(identified.ReferencedSegmentNumber)]
            indices = _indices(path, data, groups, np.argwhere(frame >= least), image)
            taken = label[tuple(indices.T)]
            if ((taken != 0) & (taken != numbers[name])).any():
                raise ValueError(f"{path} has the segment {name} over another one: expected one segment per voxel.")
            label[tuple(indices.T)] = numbers[name]
    return Volume(label, image.affine)


def _indices(
    path: Path, data: pydicom.Dataset, groups: pydicom.Dataset, pixels: np.ndarray, image: Volume
) -> np.ndarray:
    """Return the voxels of the image, ``N x 3``, on which pixels of a frame lie.

    Args:
        path: the file, for messages.
        data: the segmentation.
        groups: functional groups of the frame.
        pixels: row and column of each pixel, ``N x 2``.
        image: the image.
    """
    along_row, along_column = np.reshape(
        np.asarray(_of_frame(data, groups, "PlaneOrientationSequence").ImageOrientationPatient, dtype=float), (2, 3)
    )
    between_rows, between_columns = map(float, _of_frame(data, groups, "PixelMeasuresSequence").PixelSpacing)
    corner = np.asarray(_of_frame(data, groups, "PlanePositionSequence").ImagePositionPatient, dtype=float)
    places = corner + pixels @ np.stack([along_column * between_rows, along_row * between_columns])
    places = places * (-1, -1, 1)  # DICOM's axes point left and posterior
    exact = (places - image.affine[:3, 3]) @ np.linalg.inv(image.affine[:3, :3]).T
    indices = np.rint(exact).astype(int)
    off = np.abs(exact - indices).max(initial=0) > FAR
    if off or (indices < 0).any() or (indices >= image.voxels.shape[:3]).any():
        raise ValueError(f"{path} has pixels that are not on the voxels of its series: expected the same grid.")
    return indices


def _of_frame(data: pydicom.Dataset, groups: pydicom.Dataset, name: str) -> pydicom.Dataset:
    """Return the first item of a functional group: the frame's own, or the one that all frames share."""
    shared = data.SharedFunctionalGroupsSequence[0] if "SharedFunctionalGroupsSequence" in data else groups
    return (groups if name in groups else shared)[name][0]
