"""Scans on disk -> labeled, unlabeled and validation cases, and the checks that run before any training.

:func:`find_cases` reads a folder or a datalist, :func:`check_cases` reads every file once. Both raise
:class:`InputError` with a sentence that names the file or the key, what was found and what was expected.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
import torch
from nibabel.spatialimages import SpatialImage
from torch import nn

logger = logging.getLogger(__name__)

EXTENSIONS = (".nii.gz", ".nii")
DATALIST_KEYS = ("labeled", "unlabeled", "validation")
DATASTORE = "datastore_v2.json"
"""What MONAI Label 0.8 writes into the folder of the studies that it serves."""
UNKNOWN = 255
"""Value of a voxel in a label of which the annotator has said nothing."""
LABELED_KEYS = ("labeled", "validation")
"""Lists whose every entry must have a label; in the others a label may be missing."""
MAX_REPORTED = 10
"""Problems that one error lists; the rest is counted."""
READERS = 4
"""Threads that read files: as many whole volumes are in memory at a time."""
MAX_PATCH_RATIO = 4
"""Smaller scans are padded to the patch, but a patch longer than this many times the largest scan is a mistake."""


class InputError(SystemExit):
    """Input of the user that cannot be trained on, said in one sentence (or one sentence a line).

    It derives from ``SystemExit`` because MONAI's config parser wraps every ``Exception`` that is raised while it
    evaluates a config in a ``RuntimeError`` with a long traceback. ``SystemExit`` passes through: Python prints the
    sentence on stderr and exits with code 1.
    """


@dataclass(frozen=True)
class Cases:
    """Cases as MONAI's datasets take them, with absolute paths.

    Attributes:
        labeled: training cases, ``{"image": path, "label": path}``.
        unlabeled: training cases, ``{"image": path}``.
        validation: validation cases, ``{"image": path, "label": path}``.
    """

    labeled: list[dict[str, str]]
    unlabeled: list[dict[str, str]]
    validation: list[dict[str, str]]


@dataclass(frozen=True)
class _Source:
    """What a folder or a datalist says: ``validation`` is None where it says nothing about validation."""

    training: list[dict[str, str]]
    validation: list[dict[str, str]] | None
    name: str


# ---- find_cases: which scans there are ----


def find_cases(
    dataset_dir: str | os.PathLike[str],
    datalist: str | os.PathLike[str] | None = None,
    num_labeled: int | None = None,
    labels_required: bool = True,
) -> Cases:
    """Find the labeled, unlabeled and validation cases of a data set.

    Four forms are understood, with files ending in ``.nii.gz`` or ``.nii``:

    - ``dataset_dir/images`` and ``dataset_dir/labels``, where a label has the file name of its image. Optional
      ``train.list`` and ``val.list`` beside them hold a case name a line; without ``train.list``, every image that is
      not in ``val.list`` is for training, in the order of the names.
    - ``dataset_dir/imagesTr`` and ``dataset_dir/labelsTr``, the layout of the Medical Segmentation Decathlon, with the
      ``training`` and ``validation`` lists of ``dataset.json`` where it has them. Test scans are never used.
    - ``dataset_dir/datastore_v2.json``, the studies of a MONAI Label server: a case is labeled if its label is final,
      and for validation if the information about its image has ``"split": "validation"``.
    - ``datalist``, a JSON file with the keys ``labeled``, ``unlabeled`` and ``validation``; its paths are absolute or
      relative to ``dataset_dir``.

    In a folder, a case is labeled if its label file exists. Where nothing is said about validation, the last fifth of
    the labeled training cases, rounded down, is taken for it (none of fewer than five). To train without validation,
    say so: an empty ``val.list`` or ``"validation": []``.

    Args:
        dataset_dir: folder of the data set.
        datalist: JSON file, as given or inside ``dataset_dir``; None to use the folder's layout.
        num_labeled: hides the labels of all but the first so many labeled training cases: the others are appended to
            the unlabeled cases. None keeps every label.
        labels_required: whether a data set without any label is an error. It is none for one client of a federated
            training, whose network learns from the other clients' labels.

    Raises:
        InputError: when the input cannot be used; the sentence says why.

    Example:
        >>> find_cases("data/hippocampus", num_labeled=4).labeled[0]  # doctest: +SKIP
        {'image': '/data/hippocampus/imagesTr/a.nii.gz', 'label': '/data/hippocampus/labelsTr/a.nii.gz'}
    """
    root = Path(dataset_dir).expanduser()
    if datalist:
        source = _read_datalist(root, Path(datalist).expanduser())
    elif (root / DATASTORE).is_file():
        source = _read_datastore(root)
    elif (root / "imagesTr").is_dir():
        source = _read_decathlon(root)
    else:
        source = _read_folder(root)

    labeled = [case for case in source.training if "label" in case]
    unlabeled = [{"image": case["image"]} for case in source.training if "label" not in case]
    if source.validation is None:
        kept = len(labeled) - len(labeled) // 5
        labeled, validation = labeled[:kept], labeled[kept:]
        origin = f"the last fifth of the labeled cases, since {source.name} names none"
    else:
        validation, origin = source.validation, source.name
    _require_usable(labeled, unlabeled, validation, source.name, labels_required)
    labeled, hidden = _hide_labels(labeled, num_labeled, len(validation) if source.validation is None else 0)
    unlabeled += hidden

    logger.info(
        f"{root}: {len(labeled)} labeled, {len(unlabeled)} unlabeled and {len(validation)} validation cases "
        f"(validation: {origin if validation else 'none'})."
    )
    return Cases(labeled=labeled, unlabeled=unlabeled, validation=validation)


def check_checkpoint(path: str | os.PathLike[str], network: nn.Module) -> None:
    """Check that a file holds the weights of a network, without loading them into it.

    Raises:
        InputError: when there is no such file, it holds no weights, or those of another network.
    """
    if not isinstance(path, (str, os.PathLike)) or not os.path.isfile(path):
        raise InputError(
            f"{path} does not exist: expected the weights of a trained network (ckpt_path; training writes them as "
            "model.pt and model_final.pt in ckpt_dir)."
        )
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and PyTorch raise a dozen types
        found, reason = None, f"it cannot be read: {str(error).splitlines()[0][:100] if str(error) else error!r}"
    else:
        reason = f"it holds a {type(found).__name__}"
    if not isinstance(found, Mapping):
        raise InputError(
            f"{path} has no weights ({reason}): expected the state dict of a trained network (ckpt_path); an exported "
            "network needs exported.json."
        )
    expected = network.state_dict()
    for name in [*expected, *found]:
        have, want = (_weight_shape(weights, name) for weights in (found, expected))
        if have != want:
            raise InputError(
                f"{path} holds the weights of another network: {name} is {have}, expected {want}; give the same config "
                "files and overrides as in training."
            )


def _weight_shape(weights: Mapping[str, Any], name: str) -> str:
    if name not in weights:
        return "missing"
    return _text(weights[name].shape) or "one number" if isinstance(weights[name], torch.Tensor) else "no tensor"


def _require_usable(
    labeled: Sequence[Mapping[str, str]],
    unlabeled: Sequence[Mapping[str, str]],
    validation: Sequence[Mapping[str, str]],
    source: str,
    labels_required: bool,
) -> None:
    for case in validation:
        if "label" not in case:
            raise InputError(f"{source}: the validation case {case['image']} has no label file: expected one for each.")
    for image in _in_both([*labeled, *unlabeled], validation):
        raise InputError(f"{source}: {image} is listed for training and for validation: expected in one of them only.")
    if not labeled and labels_required:
        raise InputError(
            f"{source}: found no label among {len(unlabeled)} training cases: expected at least one label file, with "
            "the file name of its image, in labels/ or labelsTr/."
        )


def _hide_labels(
    labeled: list[dict[str, str]], num_labeled: int | None, held_out: int
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """The first ``num_labeled`` cases, and the others without their label."""
    if num_labeled is None:
        return labeled, []
    if not isinstance(num_labeled, int) or isinstance(num_labeled, bool) or num_labeled < 1:
        raise InputError(f"num_labeled is {num_labeled!r}: expected a whole number of at least 1, or null for all.")
    if num_labeled > len(labeled):
        reason = f" ({held_out} more are held out for validation)" if held_out else ""
        raise InputError(
            f"num_labeled is {num_labeled}, but {len(labeled)} labeled training cases exist{reason}: "
            f"expected 1 to {len(labeled)}."
        )
    return labeled[:num_labeled], [{"image": case["image"]} for case in labeled[num_labeled:]]


def _read_folder(root: Path) -> _Source:
    images, labels = _scan(root / "images"), _scan(root / "labels")
    if not images:
        raise _no_images(root)
    _warn_of_lost_labels(images, labels)
    validation = _read_list(root / "val.list", images)
    training = _read_list(root / "train.list", images)
    if training is None:
        training = sorted(set(images) - set(validation or ()))
    lists = [name for name in ("train.list", "val.list") if (root / name).is_file()]
    return _Source(
        training=[_case(images[name], labels.get(name)) for name in training],
        validation=None if validation is None else [_case(images[name], labels.get(name)) for name in validation],
        name=f"{root} ({', '.join(lists)})" if lists else str(root),
    )


def _read_decathlon(root: Path) -> _Source:
    images, labels = _scan(root / "imagesTr"), _scan(root / "labelsTr")
    if not images:
        raise _no_images(root)
    _warn_of_lost_labels(images, labels)
    path = root / "dataset.json"
    lists = _read_json(path) if path.is_file() else {}
    training, validation = (_listed_cases(root, lists, key, path) for key in ("training", "validation"))
    if training is None:
        taken = {case["image"] for case in validation or ()}
        training = [_case(images[name], labels.get(name)) for name in sorted(images)]
        training = [case for case in training if case["image"] not in taken]
    return _Source(training=training, validation=validation, name=str(path if lists else root))


def _read_datalist(root: Path, datalist: Path) -> _Source:
    path = datalist if datalist.is_file() or datalist.is_absolute() else root / datalist
    lists = _read_json(path)
    for key in lists:
        if key not in DATALIST_KEYS:
            nearest = difflib.get_close_matches(key, DATALIST_KEYS, n=1)
            hint = f", nearest is {nearest[0]!r}" if nearest else ""
            raise InputError(f"datalist {path} has the unknown key {key!r}: expected {', '.join(DATALIST_KEYS)}{hint}.")
    if "labeled" not in lists:
        raise InputError(f"datalist {path} has no key 'labeled': expected a list of {{image, label}} under it.")

    labeled, unlabeled, validation = (_listed_cases(root, lists, key, path) for key in DATALIST_KEYS)
    unlabeled = [{"image": case["image"]} for case in unlabeled or ()]
    return _Source(training=[*(labeled or ()), *unlabeled], validation=validation, name=str(path))


def _read_datastore(root: Path) -> _Source:
    path = root / DATASTORE
    store = _read_json(path)
    images, labels = root / store.get("images_dir", ""), root / store.get("labels_dir", "labels") / "final"
    training: list[dict[str, str]] = []
    validation: list[dict[str, str]] = []
    for name, entry in store.get("objects", {}).items():
        image = images / f"{name}{entry['image']['ext']}"
        final = entry.get("labels", {}).get("final")
        if is_nifti(image):
            case = _case(image, None if final is None else labels / f"{name}{final['ext']}")
            held_out = final is not None and entry["image"].get("info", {}).get("split") == "validation"
            (validation if held_out else training).append(case)
    if not training and not validation:
        raise _no_images(root)
    return _Source(training=training, validation=validation or None, name=str(path))


def _no_images(root: Path) -> InputError:
    return InputError(
        f"dataset_dir {root} {'has no images' if root.is_dir() else 'does not exist'}: expected .nii.gz or .nii files "
        "in images/ and labels/, or in imagesTr/ and labelsTr/, or a MONAI Label datastore; for demo data, run "
        "`python scripts/make_demo_data.py --output_dir DIR` in the repository."
    )


def is_nifti(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a file that is named as a NIfTI file.

    Hidden ones are not (macOS leaves ``._name`` beside each name). A link that leads nowhere is: whoever reads it can
    then say so.
    """
    path = Path(path)
    named = path.name.lower().endswith(EXTENSIONS) and not path.name.startswith(".")
    return named and (path.is_file() or path.is_symlink()) and not path.is_dir()


def case_name(path: str | os.PathLike[str]) -> str:
    """Name of a scan without its folder and extension."""
    name = Path(path).name
    for extension in EXTENSIONS:
        if name.lower().endswith(extension):
            return name[: -len(extension)]
    return name


def _scan(folder: Path) -> dict[str, Path]:
    """Case name to file, sorted."""
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not is_nifti(path):
            continue
        name = case_name(path)
        if name in files:
            raise InputError(
                f"{folder} has {files[name].name} and {path.name} for the one case {name}: expected one file."
            )
        files[name] = path
    return files


def _warn_of_lost_labels(images: Mapping[str, Path], labels: Mapping[str, Path]) -> None:
    lost = sorted(set(labels) - set(images))
    if lost:
        logger.warning(f"{labels[lost[0]]}: {len(lost)} label files have no image of the same name and are not used.")


def _read_list(path: Path, images: Mapping[str, Path]) -> list[str] | None:
    """The case names in a list file, or None where there is no such file."""
    if not path.is_file():
        return None
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    names = [case_name(line.strip()) for line in lines if line.strip()]
    folder = path.parent / "images"
    for name in names:
        if name not in images:
            raise InputError(f"{path} lists the case {name}, which has no image: expected {folder / name}.nii.gz.")
        if names.count(name) > 1:
            raise InputError(f"{path} lists the case {name} {names.count(name)} times: expected once.")
    return names


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path} does not exist: expected a JSON file.")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise InputError(f"{path} is no JSON file ({error}): expected lists of cases.") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}: expected a JSON object with lists of cases.")
    return content


def _listed_cases(root: Path, lists: Mapping[str, Any], key: str, path: Path) -> list[dict[str, str]] | None:
    """The cases under one key of a JSON file, or None where it lacks the key."""
    if key not in lists:
        return None
    if not isinstance(lists[key], list):
        raise InputError(f"{path}: {key!r} is a {type(lists[key]).__name__}: expected a list of cases.")
    return [_listed_case(root, entry, f"{path}, {key}", key in LABELED_KEYS) for entry in lists[key]]


def _listed_case(root: Path, entry: Any, place: str, labeled: bool) -> dict[str, str]:
    """One entry of a JSON list: an image that must exist, and its label, which must exist if ``labeled``."""
    if isinstance(entry, str):
        entry = {"image": entry}
    if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
        raise InputError(f"{place}: the entry {entry!r} names no image: expected the key 'image' with a path.")
    image = root / entry["image"]
    if not image.is_file():
        raise InputError(f"{place}: the image {entry['image']} was not found: expected the file {image}.")
    label = root / entry["label"] if isinstance(entry.get("label"), str) else None
    exists = label is not None and label.is_file()
    if labeled and not exists:
        raise InputError(f"{place}: the label of {image} is {entry.get('label')!r}: expected the path of a file.")
    return _case(image, label if exists else None)


def _case(image: Path, label: Path | None) -> dict[str, str]:
    case = {"image": os.path.abspath(image)}
    return case if label is None else {**case, "label": os.path.abspath(label)}


def _in_both(training: Iterable[Mapping[str, Any]], validation: Iterable[Mapping[str, Any]]) -> list[str]:
    """The images of ``validation`` that are in ``training`` too; links are followed, since a link is no second scan."""
    known = {os.path.realpath(case["image"]) for case in training}
    return [str(case["image"]) for case in validation if os.path.realpath(case["image"]) in known]


def unlabeled_scans(
    unlabeled: Sequence[Mapping[str, Any]], labeled: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The scans without a label, and those whose label holds 255: where nothing was annotated they are unlabeled too.

    Args:
        unlabeled: cases, ``{"image": path}``.
        labeled: cases with labels. A label that cannot be read is passed over: :func:`check_cases` reports it.

    Returns:
        ``{"image": path}`` of each.
    """

    def is_partial(case: Mapping[str, Any]) -> bool:
        return bool((read_nifti(case["label"])[1] == UNKNOWN).any())

    with ThreadPoolExecutor(READERS) as pool:
        partial = list(pool.map(is_partial, labeled))
    known = {str(case["image"]) for case in unlabeled}
    images = [case["image"] for case, chosen in zip(labeled, partial, strict=True) if chosen]
    return [*map(dict, unlabeled), *({"image": image} for image in images if str(image) not in known)]


# ---- check_cases: whether the scans can be trained on ----


@dataclass(frozen=True)
class _Report:
    """What reading one case gave: sentences, and the scan's size in voxels of ``spacing`` along R, A, S."""

    problems: list[str]
    size: np.ndarray | None = None


def check_cases(
    *,
    labeled: Sequence[Mapping[str, Any]],
    unlabeled: Sequence[Mapping[str, Any]],
    validation: Sequence[Mapping[str, Any]],
    in_channels: int,
    out_channels: int,
    patch_size: Sequence[int],
    patch_divisor: int,
    spacing: Sequence[float] | None,
    bfloat16_on_cpu: bool = False,
    labels_required: bool = True,
) -> None:
    """Read every file once, header and voxels, and raise one error that names the problems.

    Of an entry only ``"image"`` and, for labeled and validation cases, ``"label"`` are used. A ``"label"`` of an
    unlabeled case is never opened.

    Args:
        labeled: training cases with labels, at least one unless labels are not required.
        unlabeled: training cases without labels; may be empty.
        validation: cases with labels; may be empty.
        in_channels: channels of an image: 1 for ``W x H x D`` files (a fourth axis of size 1 is accepted), otherwise
            the size of the files' last axis.
        out_channels: classes with background: labels hold the whole numbers ``0 .. out_channels - 1``, and 255 where
            nothing was annotated.
        patch_size: voxels of a training patch, an axis each; its length is the number of spatial axes.
        patch_divisor: what the network needs every patch size to be a multiple of.
        spacing: millimetres a voxel after resampling, an axis each in R, A, S order; None keeps each scan's own.
        bfloat16_on_cpu: whether the network trains under bfloat16 autocast on the CPU, which rules out some patches.
        labels_required: whether having no labeled cases is a problem.

    Raises:
        InputError: one sentence a problem, one a line, in the order of the lists, at most ten.
    """
    start = time.perf_counter()
    options = option_problems(patch_size, patch_divisor, spacing)
    if bfloat16_on_cpu and len(patch_size) == 3 and patch_size[0] == 2 * patch_divisor:
        # PyTorch 2.13: the gradient of a 3x3x3 convolution over 2 x ... voxels reads memory that nobody wrote.
        options.append(
            f"patch_size is {patch_size[0]} on axis 0, where the network's deepest map then has 2 voxels, and bfloat16 "
            f"gradients of such maps are wrong on a CPU: expected at least {3 * patch_divisor}, or --amp False."
        )
    _raise_if(options + _list_problems(labeled, unlabeled, validation, labels_required))

    read = {str(case["image"]) for case in labeled}
    cases: list[tuple[Any, Any]] = [(case["image"], case["label"]) for case in labeled]
    cases += [(case["image"], None) for case in unlabeled if str(case["image"]) not in read]
    training = len(cases)
    cases += [(case["image"], case["label"]) for case in validation]

    def check(case: tuple[Any, Any]) -> _Report:
        return _check_case(*case, len(patch_size), in_channels, out_channels, spacing)

    with ThreadPoolExecutor(READERS) as pool:
        reports = list(pool.map(check, cases))
    sizes = [report.size for report in reports[:training] if report.size is not None]
    _raise_if([problem for report in reports for problem in report.problems] + _patch_problems(patch_size, sizes))
    logger.info(
        f"Checked {len(labeled)} labeled, {len(unlabeled)} unlabeled and {len(validation)} validation cases in "
        f"{time.perf_counter() - start:.1f} s."
    )


def _raise_if(problems: Sequence[str]) -> None:
    if problems:
        more = len(problems) - MAX_REPORTED
        raise InputError(
            "\n".join([*problems[:MAX_REPORTED], *([f"... and {more} more problems."] if more > 0 else [])])
        )


def option_problems(patch_size: Sequence[int], patch_divisor: int, spacing: Sequence[float] | None) -> list[str]:
    """Sentences about patches that the network cannot take and spacings that are none; as of :func:`check_cases`."""
    if not _are_numbers(patch_size, int) or len(patch_size) not in (2, 3):
        return [f"patch_size is {patch_size!r}: expected a list of 2 or 3 whole numbers."]
    problems = []
    for axis, size in enumerate(patch_size):
        if size < 1 or size % patch_divisor:
            below, above = (max(size // patch_divisor + more, 1) * patch_divisor for more in (0, 1))
            nearest = f"{below} or {above}" if below < above else f"{above}"
            problems.append(
                f"patch_size is {list(patch_size)}: expected a multiple of {patch_divisor} on axis {axis}, not {size}; "
                f"nearest is {nearest}."
            )
    if all(size == patch_divisor for size in patch_size):
        problems.append(
            f"patch_size is {list(patch_size)}: expected more than {patch_divisor} on some axis, for the network's "
            "deepest map would be a single voxel."
        )
    if spacing is not None and not (
        _are_numbers(spacing, int, float)
        and len(spacing) == len(patch_size)
        and all(0 < size < np.inf for size in spacing)
    ):
        problems.append(
            f"spacing is {spacing!r}: expected {len(patch_size)} positive numbers, one an axis of patch_size."
        )
    return problems


def _are_numbers(values: Any, *types: type) -> bool:
    return isinstance(values, (list, tuple)) and all(
        isinstance(one, types) and not isinstance(one, bool) for one in values
    )


def _list_problems(
    labeled: Sequence[Mapping[str, Any]],
    unlabeled: Sequence[Mapping[str, Any]],
    validation: Sequence[Mapping[str, Any]],
    labels_required: bool,
) -> list[str]:
    problems = (
        []
        if labeled or not labels_required
        else ["There are no labeled cases: expected at least one image with a label (for evaluation, in val.list)."]
    )
    for name, cases, keys in (
        ("labeled", labeled, ("image", "label")),
        ("unlabeled", unlabeled, ("image",)),
        ("validation", validation, ("image", "label")),
    ):
        for index, case in enumerate(cases):
            for key in keys:
                if not isinstance(case.get(key), (str, os.PathLike)):
                    problems.append(
                        f"The {name} case {case.get('image', f'number {index + 1}')} has {case.get(key)!r} as its "
                        f"{key}: expected the path of a file."
                    )
    if problems:
        return problems
    return [
        f"{image} is listed for training and for validation: expected in one of them only."
        for image in _in_both([*labeled, *unlabeled], validation)
    ]


def _check_case(
    image_path: Any, label_path: Any, dims: int, in_channels: int, out_channels: int, spacing: Sequence[float] | None
) -> _Report:
    image, voxels, unreadable = read_nifti(image_path)
    problems = [unreadable] if unreadable else []
    shape = None
    if image is not None:
        problems += image_problems(image_path, image, voxels, dims, in_channels)
        shape = _spatial_shape(image.shape, dims, in_channels)
    del voxels  # a whole volume: not needed while the label is read
    if label_path is not None:
        label, values, unreadable = read_nifti(label_path)
        problems += [unreadable] if unreadable else []
        if label is not None:
            problems += _label_problems(label_path, values, out_channels)
        if label is not None and image is not None and shape is not None:
            problems += _pair_problems(image_path, image, shape, label_path, label, dims)
    size = _resampled_size(image, shape, spacing) if image is not None and shape is not None and not problems else None
    return _Report(problems, size)


def read_nifti(path: Any) -> tuple[SpatialImage | None, np.ndarray, str]:
    """A NIfTI file's header and voxels, and the sentence that says why it cannot be read (empty if it can)."""
    nothing = np.empty(0)
    if not os.path.isfile(path):
        return None, nothing, f"{path} does not exist: expected a NIfTI file."
    try:
        image = cast(SpatialImage, nib.load(os.fspath(path)))
        # A truncated file has a sound header: only its voxels show it.
        return image, np.asanyarray(image.dataobj), ""
    except Exception as error:  # nibabel, gzip and zlib raise a dozen types on a broken file
        text = str(error).replace(os.fspath(path), os.path.basename(path))
        reason = (text.splitlines() or [""])[0][:100] or type(error).__name__
        return None, nothing, f"{path} cannot be read ({reason}): expected a complete NIfTI file."


def _spatial_shape(shape: tuple[int, ...], dims: int, channels: int) -> tuple[int, ...] | None:
    """The spatial part of a file's shape, or None where the file has other axes than expected."""
    if len(shape) == dims and channels == 1:
        return shape
    # NIfTI may store a single volume as W x H x D x 1, and stores channels last. Of a W x H x 1 file MONAI's reader
    # makes a volume, so that two dimensions take no further axis.
    return shape[:-1] if dims == 3 and len(shape) == 4 and shape[-1] == channels else None


def image_problems(path: Any, image: SpatialImage, voxels: np.ndarray, dims: int, in_channels: int) -> list[str]:
    """What keeps an image that could be read from being used, as :func:`check_cases` says it; at most one sentence."""
    shape = _text(image.shape)
    if _spatial_shape(image.shape, dims, in_channels) is None:
        axes = f"{dims} axes" if in_channels == 1 else f"{dims} axes and a last one of size {in_channels}"
        return [f"{path} has the shape {shape}: expected {axes} (in_channels is {in_channels})."]
    if 0 in image.shape:
        return [f"{path} has the shape {shape}: expected no axis of size 0."]
    if voxels.dtype.kind not in "iuf":
        return [f"{path} holds voxels of type {voxels.dtype}: expected one number a voxel."]
    if not np.isfinite(image.affine).all() or np.linalg.matrix_rank(image.affine[:3, :3]) < 3:
        return [f"{path} has an affine that cannot be inverted: expected three axes with a size above 0."]
    unit = _other_unit(image)
    if unit:
        return [f"{path} gives its voxel size in {unit} (xyzt_units in its header): expected millimetres."]
    if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
        count = int(np.count_nonzero(~np.isfinite(voxels)))
        return [f"{path} has {count} voxels that are NaN or infinite: expected finite numbers."]
    return []


def _other_unit(image: SpatialImage) -> str:
    """The unit of a file that says its unit is another than the millimetre, for which MONAI would take it."""
    code = int(image.header["xyzt_units"]) & 7 if isinstance(image.header, nib.Nifti1Header) else 0
    return {1: "metres", 3: "micrometres"}.get(code, "")


def _label_problems(path: Any, values: np.ndarray, out_channels: int) -> list[str]:
    if values.dtype.kind not in "iuf":
        return [f"{path} holds voxels of type {values.dtype}: expected whole numbers."]
    wrong = ((values < 0) | (values >= out_channels)) & (values != UNKNOWN)
    if values.dtype.kind == "f":
        wrong |= ~(np.floor(values) == values)  # negated: NaN is unequal to everything
    if not wrong.any():
        # Many programs write a mask as 0 and 255: that must not pass for a scan in which nothing was found.
        if (values == UNKNOWN).any() and not ((values > 0) & (values != UNKNOWN)).any():
            return [
                f"{path} has no label values but 0 and {UNKNOWN}, which stands for what was not annotated: expected "
                "some voxels of a structure (1 or more)."
            ]
        return []
    found = np.unique(values[wrong])
    listed = ", ".join(f"{value:g}" for value in found[:5]) + (", ..." if len(found) > 5 else "")
    return [
        f"{path} has label values {listed}: expected whole numbers from 0 to {out_channels - 1} (out_channels is "
        f"{out_channels}), or {UNKNOWN} for what was not annotated."
    ]


def _pair_problems(
    image_path: Any, image: SpatialImage, shape: tuple[int, ...], label_path: Any, label: SpatialImage, dims: int
) -> list[str]:
    if _spatial_shape(label.shape, dims, 1) != shape:
        return [f"{label_path} has the shape {_text(label.shape)}: expected {_text(shape)}, as {image_path} has."]
    if not np.allclose(image.affine, label.affine, atol=1e-3):
        found, expected = label.affine[:3].round(3).tolist(), image.affine[:3].round(3).tolist()
        return [f"{label_path} has the affine {found}: expected {expected}, as {image_path} has."]
    return []


def _resampled_size(image: SpatialImage, shape: tuple[int, ...], spacing: Sequence[float] | None) -> np.ndarray:
    """Voxels along R, A, S after resampling: the affine says which axis of the file is which."""
    order = np.argsort(nib.io_orientation(image.affine)[: len(shape), 0])
    if spacing is None:
        return np.asarray(shape, dtype=float)[order]
    millimetres = np.asarray(shape) * nib.affines.voxel_sizes(image.affine)[: len(shape)]
    return millimetres[order] / np.asarray(spacing, dtype=float)


def _patch_problems(patch_size: Sequence[int], sizes: Sequence[np.ndarray]) -> list[str]:
    if not sizes:
        return []
    return [
        f"patch_size is {patch} on axis {axis}, but the largest training scan has {largest:.0f} voxels there at the "
        f"training spacing: expected at most {MAX_PATCH_RATIO} times that."
        for axis, (patch, largest) in enumerate(zip(patch_size, np.max(sizes, axis=0), strict=True))
        if patch > MAX_PATCH_RATIO * largest
    ]


def _text(shape: Iterable[int]) -> str:
    return " x ".join(str(size) for size in shape)
