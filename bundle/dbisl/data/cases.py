"""Find the labeled, unlabeled and validation cases of a data set, in its folder, a datalist or an annotation server."""

from __future__ import annotations

import difflib
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dbisl.data.mistakes import check_label_names, no_images_hint
from dbisl.data.nifti import is_nifti
from dbisl.utils.errors import InputError
from dbisl.utils.files import case_name

logger = logging.getLogger(__name__)

DATALIST_KEYS = ("labeled", "unlabeled", "validation")

LABELED_KEYS = ("labeled", "validation")
"""Keys of the lists in which every case needs a label. In other lists a label may be missing."""

DATASTORE = "datastore_v2.json"
"""File that MONAI Label 0.8 writes into the folder of its studies."""


@dataclass(frozen=True)
class Cases:
    """Cases of a data set as MONAI's datasets take them, with absolute paths.

    Attributes:
        labeled: training cases, ``{"image": path, "label": path}``.
        unlabeled: training cases, ``{"image": path}``.
        validation: validation cases, ``{"image": path, "label": path}``.
    """

    labeled: list[dict[str, str]]
    unlabeled: list[dict[str, str]]
    validation: list[dict[str, str]]


def find_cases(
    dataset_dir: str | os.PathLike[str],
    datalist: str | os.PathLike[str] | None = None,
    num_labeled: int | None = None,
    labels_required: bool = True,
) -> Cases:
    """Find the labeled, unlabeled and validation cases of a data set.

    A data set has one of four forms. Files end in ``.nii.gz`` or ``.nii``.

    - ``dataset_dir/images`` and ``dataset_dir/labels``. A label has the file name of its image. Optional files
      ``train.list`` and ``val.list`` hold one case name per line. Without ``train.list``, every image that is not in
      ``val.list`` is for training, sorted by name.
    - ``dataset_dir/imagesTr`` and ``dataset_dir/labelsTr``, the layout of the Medical Segmentation Decathlon. The lists
      ``training`` and ``validation`` of ``dataset.json`` are used if they exist. Test scans are never used.
    - ``dataset_dir/datastore_v2.json``, the studies of a MONAI Label server. A case is labeled if its label is final,
      and for validation if the information about its image has ``"split": "validation"``.
    - ``datalist``, a JSON file with the keys ``labeled``, ``unlabeled`` and ``validation``. Its paths are absolute or
      relative to ``dataset_dir``.

    In a folder, a case is labeled if its label file exists. If the data set does not name validation cases, the last
    fifth of the labeled training cases is used, rounded down (with fewer than five, none). To train without validation,
    give an empty ``val.list`` or ``"validation": []``.

    Args:
        dataset_dir: the folder of the data set.
        datalist: a JSON file, as a path or as a name inside ``dataset_dir``; None to use the layout of the folder.
        num_labeled: how many labeled training cases keep their label, from the first. The others are appended to the
            unlabeled cases. None keeps every label.
        labels_required: whether a data set without any label is an error. In federated training it is not: the network
            of such a client learns from the labels of the others.

    Raises:
        InputError: if the data set cannot be used; the sentence names the file or the key, what was found and what was
            expected.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     for name in ("images/a.nii.gz", "labels/a.nii.gz", "images/b.nii.gz"):
        ...         Path(folder, name).parent.mkdir(exist_ok=True)
        ...         Path(folder, name).touch()  # empty files are enough: find_cases opens none
        ...     cases = find_cases(folder)
        >>> [case_name(case["image"]) for case in cases.labeled]
        ['a']
        >>> [case_name(case["image"]) for case in cases.unlabeled]
        ['b']
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
        origin = f"the last fifth of the labeled cases, because {source.name} lists no validation cases"
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


def overlap_problems(training: Iterable[Mapping[str, Any]], validation: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each validation image that is a training image too.

    Links are followed, because a link to a scan is not another scan.
    """
    real_paths = {os.path.realpath(case["image"]) for case in training}
    return [
        f"{case['image']} is listed for training and for validation: expected in one of them only."
        for case in validation
        if os.path.realpath(case["image"]) in real_paths
    ]


def _require_usable(
    labeled: Sequence[Mapping[str, str]],
    unlabeled: Sequence[Mapping[str, str]],
    validation: Sequence[Mapping[str, str]],
    source: str,
    labels_required: bool,
) -> None:
    """Check that validation cases have labels and are not for training, and that there is a label to train on."""
    for case in validation:
        if "label" not in case:
            raise InputError(f"{source}: the validation case {case['image']} has no label file: expected one for each.")
    for problem in overlap_problems([*labeled, *unlabeled], validation):
        raise InputError(f"{source}: {problem}")
    if not labeled and labels_required:
        if validation and not unlabeled:
            raise InputError(
                f"{source}: all {len(validation)} cases are for validation: expected some labeled cases for training."
            )
        raise InputError(
            f"{source}: found no label among {len(unlabeled)} training cases: expected at least one label file, with "
            "the file name of its image, in labels/ or labelsTr/."
        )


def _hide_labels(
    labeled: list[dict[str, str]], num_labeled: int | None, held_out: int
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Return the first ``num_labeled`` cases, and the others without their label.

    Args:
        labeled: labeled training cases.
        num_labeled: how many keep their label; None for all.
        held_out: how many labeled cases were taken for validation, for the message.
    """
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


@dataclass(frozen=True)
class _Source:
    """Cases as a folder, a datalist or a datastore gives them.

    Attributes:
        training: training cases, with and without labels.
        validation: validation cases; None if the source does not name any.
        name: the folder or the file, for messages.
    """

    training: list[dict[str, str]]
    validation: list[dict[str, str]] | None
    name: str


def _read_folder(root: Path) -> _Source:
    images, labels = _files_by_case(root / "images"), _files_by_case(root / "labels")
    if not images:
        raise _no_images(root)
    check_label_names(images, labels)
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
    images, labels = _files_by_case(root / "imagesTr"), _files_by_case(root / "labelsTr")
    if not images:
        raise _no_images(root)
    check_label_names(images, labels)
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
    """Return the error for a folder in which no image was found."""
    return InputError(
        f"dataset_dir {root} {'has no images' if root.is_dir() else 'does not exist'}: expected .nii.gz or .nii files "
        "in images/ and labels/, or in imagesTr/ and labelsTr/, or a MONAI Label datastore; for demo data, run "
        "`python scripts/make_demo_data.py --output_dir DIR` in the repository." + no_images_hint(root)
    )


def _files_by_case(folder: Path) -> dict[str, Path]:
    """Return the NIfTI files of a folder by case name, sorted by file name; empty if there is no such folder."""
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not is_nifti(path):
            continue
        name = case_name(path)
        if name in files:
            raise InputError(f"{folder} has {files[name].name} and {path.name} for the case {name}: expected one file.")
        files[name] = path
    return files


def _read_list(path: Path, images: Mapping[str, Path]) -> list[str] | None:
    """Return the case names in a list file, or None if there is no such file."""
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
    """Return the JSON object in a file."""
    if not path.is_file():
        raise InputError(f"{path} does not exist: expected a JSON file.")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise InputError(f"{path} is not a JSON file ({error}): expected lists of cases.") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}: expected a JSON object with lists of cases.")
    return content


def _listed_cases(root: Path, lists: Mapping[str, Any], key: str, path: Path) -> list[dict[str, str]] | None:
    """Return the cases under one key of a JSON file, or None if it does not have the key."""
    if key not in lists:
        return None
    if not isinstance(lists[key], list):
        raise InputError(f"{path}: {key!r} is a {type(lists[key]).__name__}: expected a list of cases.")
    return [_listed_case(root, entry, f"{path}, {key}", key in LABELED_KEYS) for entry in lists[key]]


def _listed_case(root: Path, entry: Any, place: str, labeled: bool) -> dict[str, str]:
    """Return the case that one entry of a JSON list names.

    Args:
        root: the folder to which the paths are relative.
        entry: ``{"image": path, "label": path}``, or the path of the image alone. The image must exist.
        place: the file and the key, for messages.
        labeled: whether the label must exist too.
    """
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
    """Return a case with absolute paths."""
    case = {"image": os.path.abspath(image)}
    return case if label is None else {**case, "label": os.path.abspath(label)}
