"""Turn a public data set, or scans in another common form, into the folder that training reads.

    python scripts/prepare.py --source DOWNLOAD --output_dir DATA

recognises the form of DOWNLOAD and writes::

    DATA/images/CASE.nii.gz       all scans; several channels lie on the last axis
    DATA/labels/CASE.nii.gz       their labels, with the classes 0, 1, 2, ...
    DATA/train.list, val.list     the split, where the source has one
    DATA/dataset.json             names of the channels and of the classes, and their values in the source

A case that cannot be used is named at the end, and the exit code is 1; all other cases are written.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fire
import nibabel as nib
import numpy as np
from monai.utils import ensure_tuple
from tqdm import tqdm

from dbisl.data import IGNORE_LABEL
from dbisl.utils import InputError, atomic_path, first_line

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts import each other from the repository's root
from scripts.preparing.cases import Case, Dataset, only_channels
from scripts.preparing.forms import recognise
from scripts.preparing.volumes import Volume, label_on_grid, stack_channels

RECORD = "dataset.json"


@dataclass(frozen=True)
class Classes:
    """The classes of the new labels.

    Attributes:
        values: the source's values of each structure, in the order of the classes 1, 2, ...
        ignore: the source's value that becomes 255; None if it has none.
        others_are_background: whether all other values become 0; if not, they are an error.
    """

    values: Mapping[str, Sequence[int]]
    ignore: int | None = None
    others_are_background: bool = False

    @property
    def names(self) -> list[str]:
        """Names of the classes, background first."""
        return ["background", *self.values]

    def new_value(self) -> dict[int, int]:
        """Return the new value of each value of the source."""
        new = {value: index for index, values in enumerate(self.values.values(), start=1) for value in values}
        return {0: 0, **new, **({} if self.ignore is None else {self.ignore: IGNORE_LABEL})}


def prepare(
    source: str,
    output_dir: str,
    form: str | None = None,
    channels: str | Sequence[str] | None = None,
    classes: Mapping[str, int | Sequence[int]] | None = None,
    crop_margin: float | Sequence[float | None] | None = None,
    spacing: Sequence[float] | None = None,
) -> None:
    """Write the folder.

    Args:
        source: folder of the data set, as it was downloaded and unpacked.
        output_dir: folder to write; it must be empty or missing.
        form: form of the source; by default it is recognised. ``--form help`` lists the forms.
        channels: names of the channels to keep; by default all.
        classes: names of the structures with the value or values that they have in the source, as in
            ``{'whole tumor': [1, 2, 4]}``; other values become background. By default, what the source says.
        crop_margin: millimetres to keep around the structures of each label, one number or one for each of the axes
            right, anterior, superior, where None keeps the whole axis. By default nothing is cropped. A scan without a
            label cannot be cropped.
        spacing: millimetres of a voxel by axis, for files that do not hold it (h5).

    Raises:
        InputError: when the source has no known form, or an argument does not fit. With a case that cannot be used,
            the exit code is 1 after all others are written.
    """
    folder, output = Path(str(source)).expanduser(), Path(str(output_dir)).expanduser()
    _check_numbers("spacing", spacing)
    margin = _margins(crop_margin)
    chosen = recognise(folder, None if form is None else str(form))
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"output_dir {output} exists and is not empty: expected a new folder, or remove it first.")
    print(f"{folder} has the form {chosen.name}: {chosen.meaning}.")
    dataset = chosen.read(folder, spacing)
    if not dataset.cases:
        raise InputError("\n".join([f"source {folder} has no case that can be used.", *dataset.problems]))
    if channels is not None:
        dataset = only_channels(dataset, ensure_tuple(channels))
    made_of = _classes(dataset, classes)

    for name in ("images", "labels"):
        (output / name).mkdir(parents=True, exist_ok=True)
    problems, written = list(dataset.problems), []
    taken: set[str] = set()
    for case in tqdm(dataset.cases, desc="Preparing", unit="case", disable=None):
        try:
            if case.name in taken:
                raise ValueError("An earlier case has the same name: expected every name once.")
            taken.add(case.name)
            _write_case(case, dataset, made_of, margin, output)
            written.append(case)
        except Exception as error:  # the libraries raise a dozen types on broken files
            problems.append(f"{case.name}: {first_line(error, 1000)}")
    _write_lists(output, dataset, {case.name for case in written})
    _write_record(output, dataset, made_of, chosen.name, len(written))

    labeled = sum(case.label is not None for case in written)
    print(f"Wrote {labeled} labeled and {len(written) - labeled} unlabeled scans to {output}.")
    print(f"class_names: [{', '.join(made_of.names)}]")
    print(f"in_channels: {len(dataset.channels)} ({', '.join(dataset.channels)})")
    if problems:
        print("\n".join([f"{len(problems)} problems:", *problems]), file=sys.stderr)
        raise SystemExit(1)


def _check_numbers(name: str, values: Any) -> None:
    """Check that an argument is None or three positive numbers."""
    numbers = values if isinstance(values, (list, tuple)) else ()
    if values is not None and not (len(numbers) == 3 and all(_is_positive(number) for number in numbers)):
        raise InputError(f"{name} is {values!r}: expected three positive numbers, in millimetres.")


def _is_positive(number: Any) -> bool:
    return isinstance(number, (int, float)) and not isinstance(number, bool) and 0 < number < np.inf


def _margins(margin: float | Sequence[float | None] | None) -> list[float] | None:
    """Return the margin of each axis in millimetres, or None to crop nothing."""
    if margin is None:
        return None
    values: list[Any] = list(margin) if isinstance(margin, (list, tuple)) else [margin] * 3
    if len(values) != 3 or not all(value is None or value == 0 or _is_positive(value) for value in values):
        raise InputError(f"crop_margin is {margin!r}: expected a number, or three numbers or None, in millimetres.")
    return [np.inf if value is None else float(value) for value in values]


def _classes(dataset: Dataset, given: Mapping[str, int | Sequence[int]] | None) -> Classes:
    """Return the classes: those of the command line, those of the source, or all values that its labels hold."""
    if given is not None:
        if not isinstance(given, Mapping):
            raise InputError(f"classes is {given!r}: expected names with values, as in \"{{'tumor': [1,2]}}\".")
        values = {str(name): list(ensure_tuple(numbers)) for name, numbers in given.items()}
        listed = [value for numbers in values.values() for value in numbers]
        if not listed or len(set(listed)) < len(listed) or not all(isinstance(v, int) and v > 0 for v in listed):
            raise InputError(f"classes is {given!r}: expected whole numbers above 0, each once.")
        return Classes(values, dataset.ignore, others_are_background=True)
    if dataset.classes is not None:
        return Classes(dataset.classes, dataset.ignore)
    found: set[int] = set()
    for case in tqdm(dataset.cases, desc="Reading the labels", unit="case", disable=None):
        try:
            found |= set(map(int, np.unique(case.label().voxels))) if case.label else set()
        except Exception:  # the same error comes, with the name of the case, when the case is written
            continue
    # 255 beside other values means not annotated, as in the labels that training reads; alone it is a mask's 1.
    ignore = IGNORE_LABEL if IGNORE_LABEL in found and found - {0, IGNORE_LABEL} else None
    return Classes({f"label {value}": [value] for value in sorted(found - {0, ignore})}, ignore)


def _write_case(case: Case, dataset: Dataset, classes: Classes, margin: Sequence[float] | None, output: Path) -> None:
    """Read a case and write its image and label, or neither."""
    image = stack_channels([read() for read in case.channels])
    found = image.voxels.shape[3] if image.voxels.ndim == 4 else 1
    if found != len(dataset.channels):
        raise ValueError(f"The image has {found} channels: expected {len(dataset.channels)}.")
    label = None
    if case.label is not None:
        voxels = label_on_grid(case.label(), image, dataset.only_orientation)
        label = Volume(_new_values(voxels, classes), image.affine)
    if margin is not None:
        if label is None:
            raise ValueError("The scan has no label: expected one for crop_margin.")
        box = _box(label, margin)
        image, label = _cropped(image, box), _cropped(label, box)
    if label is not None:
        _save(label.voxels, label.affine, output / "labels" / f"{case.name}.nii.gz")
    try:
        _save(_compact(image.voxels), image.affine, output / "images" / f"{case.name}.nii.gz")
    except BaseException:
        (output / "labels" / f"{case.name}.nii.gz").unlink(missing_ok=True)
        raise


def _new_values(voxels: np.ndarray, classes: Classes) -> np.ndarray:
    """Return a label with the new values, as unsigned bytes."""
    new_value = classes.new_value()
    new = np.zeros(voxels.shape, dtype=np.uint8)
    known = voxels == 0
    for value, number in new_value.items():
        here = voxels == value
        new[here] = number
        known |= here
    if not (known.all() or classes.others_are_background):
        listed = ", ".join(f"{value:g}" for value in np.unique(voxels[~known])[:5])
        raise ValueError(f"The label has the values {listed}: expected {', '.join(map(str, sorted(new_value)))}.")
    return new


def _box(label: Volume, margin: Sequence[float]) -> tuple[slice, ...]:
    """Return the box around the structures of a label.

    Args:
        label: the new label, ``W x H x D``.
        margin: millimetres on each side along right, anterior, superior.
    """
    structure = (label.voxels > 0) & (label.voxels != IGNORE_LABEL)
    if not structure.any():
        raise ValueError("The label has no voxel of a structure: expected some for crop_margin.")
    sizes, directions = nib.affines.voxel_sizes(label.affine), nib.io_orientation(label.affine)[:, 0]
    box = []
    for axis, size in enumerate(label.voxels.shape):
        filled = np.flatnonzero(structure.any(axis=tuple(other for other in range(3) if other != axis)))
        # Headers round voxel sizes, so a hair more than a whole voxel is a whole voxel.
        more = min(np.ceil(margin[int(directions[axis])] / sizes[axis] - 1e-3), size)
        box.append(slice(max(int(filled[0] - more), 0), min(int(filled[-1] + 1 + more), size)))
    return tuple(box)


def _cropped(volume: Volume, box: tuple[slice, ...]) -> Volume:
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [one.start for one in box]
    return Volume(volume.voxels[box], affine)


def _compact(voxels: np.ndarray) -> np.ndarray:
    """Return the same numbers in the smallest of NIfTI's usual types: 8 or 16 bit if they are whole, else float32."""
    lowest, highest = voxels.min(), voxels.max()
    for dtype in (np.uint8, np.int16, np.uint16):
        limits = np.iinfo(dtype)
        if limits.min <= lowest and highest <= limits.max:
            whole = voxels.astype(dtype)
            if np.array_equal(whole, voxels):
                return whole
    return voxels.astype(np.float32)


def _save(voxels: np.ndarray, affine: np.ndarray, path: Path) -> None:
    image = nib.nifti1.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm")
    with atomic_path(path) as temporary:
        nib.save(image, temporary)


def _write_lists(output: Path, dataset: Dataset, written: set[str]) -> None:
    for name, names in dataset.lists.items():
        kept = [f"{case}\n" for case in names if case in written]
        with atomic_path(output / f"{name}.list") as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")


def _write_record(output: Path, dataset: Dataset, classes: Classes, form: str, count: int) -> None:
    """Write ``dataset.json``, in the words of nnU-Net's version 2 and with the values of the source."""
    new_value = classes.new_value()
    regions = {} if classes.others_are_background else dataset.regions
    record: dict[str, Any] = {
        "channel_names": {str(index): name for index, name in enumerate(dataset.channels)},
        "labels": {name: index for index, name in enumerate(classes.names)},
        "source_values": {name: list(values) for name, values in classes.values.items()},
        "form": form,
        "numTraining": count,
        "file_ending": ".nii.gz",
    }
    if regions:
        record["regions"] = {name: sorted(new_value[value] for value in values) for name, values in regions.items()}
    with atomic_path(output / RECORD) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    fire.Fire(prepare)
