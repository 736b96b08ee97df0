"""Read a volume and its place from NIfTI, NRRD and HDF5 files, and bring a label onto its image's grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
from monai.utils import optional_import

from dbisl.data import read_nifti
from dbisl.data.nifti import image_problem
from dbisl.utils import InputError

h5py, HAS_H5PY = optional_import("h5py")
nrrd, HAS_NRRD = optional_import("nrrd")

TO_RAS = {
    "left-posterior-superior": (-1, -1, 1),
    "lps": (-1, -1, 1),
    "right-anterior-superior": (1, 1, 1),
    "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "las": (-1, 1, 1),
}
"""Signs that turn the coordinates of an NRRD space into right, anterior, superior."""
TOLERANCE = 0.01
"""Part of a voxel by which a label's grid may differ from its image's. Headers round their numbers."""


@dataclass(frozen=True)
class Volume:
    """An image or a label in memory.

    Attributes:
        voxels: ``W x H x D``, or ``W x H x D x C`` with several channels.
        affine: ``4 x 4``, from voxel indices to millimetres right, anterior, superior.
    """

    voxels: np.ndarray
    affine: np.ndarray


def read_nifti_volume(path: Path) -> Volume:
    """Read a NIfTI file of three axes, or of four with the channels last.

    Raises:
        ValueError: when training could not use the file either; the sentence says why.
    """
    image, voxels, problem = read_nifti(path)
    if image is not None:
        problem = image_problem(path, image, voxels, 3, voxels.shape[3] if voxels.ndim == 4 else 1)
    if image is None or problem:
        raise ValueError(problem)
    if voxels.ndim == 4 and voxels.shape[3] == 1:
        voxels = voxels[..., 0]
    return Volume(voxels, np.asarray(image.affine))


def read_nrrd_volume(path: Path) -> Volume:
    """Read an NRRD file of three axes.

    Raises:
        ValueError: when the file has other axes, or does not say where its voxels lie.
        InputError: when the package pynrrd is missing.
    """
    _require(HAS_NRRD, "pynrrd", path)
    voxels, header = nrrd.read(str(path))
    _check_axes(path, voxels)
    space = str(header.get("space", "")).lower()
    directions = header.get("space directions")
    if directions is None or np.shape(directions) != (3, 3) or space not in TO_RAS:
        raise ValueError(
            f"{path} has the space {space or 'unknown'!r} with directions {directions}: expected 3 x 3 space "
            f"directions in one of the spaces {', '.join(TO_RAS)}."
        )
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(directions, dtype=float).T  # a row of the header is a column of the matrix
    affine[:3, 3] = header.get("space origin", (0.0, 0.0, 0.0))
    return Volume(voxels, np.diag((*TO_RAS[space], 1)) @ affine)


def read_hdf5_volume(path: Path, key: str, spacing: Sequence[float]) -> Volume:
    """Read an array of three axes from an HDF5 file.

    Args:
        path: the file.
        key: name of the array, ``"image"`` or ``"label"``.
        spacing: millimetres of a voxel by axis. The file does not hold it.

    Raises:
        ValueError: when the file has no such array, or it has other axes.
        InputError: when the package h5py is missing.
    """
    require_hdf5(path)
    with h5py.File(path, "r") as file:
        if key not in file:
            raise ValueError(f"{path} holds {', '.join(file) or 'nothing'}: expected the array {key!r}.")
        voxels = file[key][...]
    _check_axes(path, voxels)
    return Volume(voxels, np.diag((*spacing, 1.0)))


def require_hdf5(path: Path) -> None:
    """Check that the package h5py is there to read a file."""
    _require(HAS_H5PY, "h5py", path)


def read_volume(path: Path) -> Volume:
    """Read a NIfTI or an NRRD file, whichever its name says."""
    return read_nrrd_volume(path) if path.suffix.lower() == ".nrrd" else read_nifti_volume(path)


def label_reader(path: Path | None) -> Callable[[], Volume] | None:
    """Return the function that reads a label file, or None for no file."""
    return None if path is None else partial(read_volume, path)


def stack_channels(volumes: Sequence[Volume]) -> Volume:
    """Return one volume with the channels on the last axis; a single volume stays as it is.

    Raises:
        ValueError: when the channels have different grids.
    """
    first, *others = volumes
    for number, other in enumerate(others, start=1):
        if other.voxels.shape != first.voxels.shape or not _same_grid(other.affine, first.affine, first.voxels.shape):
            raise ValueError(
                f"Channel {number} has the shape {other.voxels.shape} and the affine {_short(other.affine)}: expected "
                f"{first.voxels.shape} and {_short(first.affine)}, as channel 0 has."
            )
    return Volume(np.stack([one.voxels for one in volumes], axis=-1), first.affine) if others else first


def label_on_grid(label: Volume, image: Volume, only_orientation: bool = False) -> np.ndarray:
    """Return a label in the order of its image's axes.

    The headers say how the two lie. A label whose axes run in other directions is turned; nothing is resampled.

    Args:
        label: the label, ``W x H x D``.
        image: its image.
        only_orientation: whether the labels' origins are not to be trusted, so that the directions, the spacing and
            the shape are compared alone.

    Raises:
        ValueError: when the label has another shape, spacing, or place than the image.
    """
    if label.voxels.ndim != 3:
        raise ValueError(f"The label has the shape {label.voxels.shape}: expected three axes.")
    turn = nib.orientations.ornt_transform(nib.io_orientation(label.affine), nib.io_orientation(image.affine))
    voxels = nib.orientations.apply_orientation(label.voxels, turn)
    affine = label.affine @ nib.orientations.inv_ornt_aff(turn, label.voxels.shape)
    if only_orientation:
        affine[:3, 3] = image.affine[:3, 3]
    if voxels.shape != image.voxels.shape[:3]:
        raise ValueError(
            f"The label has the shape {voxels.shape}: expected {image.voxels.shape[:3]}, as the image has."
        )
    if not _same_grid(affine, image.affine, voxels.shape):
        raise ValueError(
            f"The label has the affine {_short(affine)}: expected {_short(image.affine)}, as the image has."
        )
    return voxels


def _same_grid(one: np.ndarray, other: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Return whether two affines put every voxel of a shape at one place, to half a voxel and ``TOLERANCE`` a step."""
    steps = np.abs(np.linalg.solve(other, one) - np.eye(4))
    furthest = steps[:3, :3] @ (np.asarray(shape[:3]) - 1) + steps[:3, 3]
    return bool((steps[:3, :3] < TOLERANCE).all() and (furthest < 0.5).all())


def _check_axes(path: Path, voxels: np.ndarray) -> None:
    """Raise a ``ValueError`` when the voxels are not finite numbers on three axes."""
    if voxels.ndim != 3 or voxels.dtype.kind not in "iufb" or 0 in voxels.shape or not np.isfinite(voxels).all():
        raise ValueError(
            f"{path} holds {voxels.dtype} voxels of the shape {voxels.shape}: expected finite numbers on three axes."
        )


def _require(found: bool, package: str, path: Path) -> None:
    if not found:
        raise InputError(f"{path} needs the package {package}: install it with `pip install {package}`.")


def _short(affine: np.ndarray) -> list[list[float]]:
    return [[round(float(value), 3) for value in row] for row in affine[:3]]
