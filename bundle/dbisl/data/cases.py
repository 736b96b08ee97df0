"""Find the labeled, unlabeled and validation cases of a data set, in its folder, a datalist or an annotation server."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dbisl.data.mistakes import check_label_names, no_images_hint
from dbisl.data.nifti import is_nifti
from dbisl.data.splits import hide_labels, require_usable, split_cases
from dbisl.utils.errors import InputError
from dbisl.utils.files import case_name, read_json_object

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
    group: str | None = None,
    num_folds: int | None = None,
    fold: int | None = None,
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
    give an empty ``val.list`` or ``"validation": []``. Groups and folds are those of
    :func:`dbisl.data.splits.split_cases`.

    Args:
        dataset_dir: the folder of the data set.
        datalist: a JSON file, as a path or as a name inside ``dataset_dir``; None to use the layout of the folder.
        num_labeled: how many labeled training cases keep their label, from the first. The others are appended to the
            unlabeled cases. None keeps every label.
        labels_required: whether a data set without any label is an error. In federated training it is not: the network
            of such a client learns from the labels of the others.
        group: a regular expression for the names of the cases, whose first group (or whole match) names the patient.
            All cases of one patient are for training or all for validation. None: each case stands for itself. In a
            datalist, the key ``"group"`` of a case names its patient too.
        num_folds: number of folds into which the labeled training cases are split; None: no folds.
        fold: the fold that is for validation, from 0; None: no folds.

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
    source = _read_datalist(root, Path(datalist).expanduser()) if datalist else _read_layout(root)
    split = split_cases(source.training, source.validation, source.name, group, num_folds, fold)
    labeled = _without_group(case for case in split.training if "label" in case)
    unlabeled = _without_group(case for case in split.training if "label" not in case)
    validation = _without_group(split.validation)
    require_usable(labeled, unlabeled, validation, source.name, labels_required)
    labeled, hidden = hide_labels(labeled, num_labeled, split.held_out)
    unlabeled += hidden

    logger.info(
        f"{root}: {len(labeled)} labeled, {len(unlabeled)} unlabeled and {len(validation)} validation cases "
        f"(validation: {split.origin if validation else 'none'})."
    )
    return Cases(labeled=labeled, unlabeled=unlabeled, validation=validation)


def find_cases_to_evaluate(scans: str | os.PathLike[str] | None = None, **options: Any) -> Cases:
    """Find the cases of an evaluation: all labeled scans of a folder, or the validation cases of a data set.

    Args:
        scans: a folder in one of the layouts of :func:`find_cases`. All its labeled scans are for validation, whatever
            its lists say, and the data set is not read. None: the data set decides.
        options: the arguments of :func:`find_cases`.

    Raises:
        InputError: if there is no labeled scan in ``scans``, if ``scans`` and ``fold`` are both given, and as in
            :func:`find_cases`.
    """
    if scans is None:
        return find_cases(**options)
    if options.get("fold") is not None:
        raise InputError(
            f"scans is {scans} and fold is {options['fold']}: expected one of them, and null for the other."
        )
    root = Path(scans).expanduser()
    source = _read_layout(root, "scans", lists=False)
    validation = _without_group(case for case in (*source.training, *(source.validation or ())) if "label" in case)
    unlabeled = len(source.training) + len(source.validation or ()) - len(validation)
    if not validation:
        raise InputError(
            f"scans {root} has {unlabeled} scans and no label: expected a label for each scan to evaluate."
        )
    logger.info(f"{root}: {len(validation)} labeled scans to evaluate ({unlabeled} without a label are left out).")
    return Cases(labeled=[], unlabeled=[], validation=validation)


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


def _read_layout(root: Path, key: str = "dataset_dir", lists: bool = True) -> _Source:
    """Read a folder in the layout that it has.

    Args:
        root: the folder.
        key: the config key that names the folder, for messages.
        lists: whether the folder's lists are read. False: every scan is there, with its label if it has one.
    """
    if (root / DATASTORE).is_file():
        return _read_datastore(root, key)
    if (root / "imagesTr").is_dir():
        return _read_decathlon(root, key, lists)
    return _read_folder(root, key, lists)


def _read_folder(root: Path, key: str, lists: bool) -> _Source:
    images, labels = _files_by_case(root / "images"), _files_by_case(root / "labels")
    if not images:
        raise _no_images(root, key)
    check_label_names(images, labels)
    validation = _read_list(root / "val.list", images) if lists else None
    training = _read_list(root / "train.list", images) if lists else None
    if training is None:
        training = sorted(set(images) - set(validation or ()))
    found = [name for name in ("train.list", "val.list") if lists and (root / name).is_file()]
    return _Source(
        training=[_case(images[name], labels.get(name)) for name in training],
        validation=None if validation is None else [_case(images[name], labels.get(name)) for name in validation],
        name=f"{root} ({', '.join(found)})" if found else str(root),
    )


def _read_decathlon(root: Path, key: str, lists: bool) -> _Source:
    images, labels = _files_by_case(root / "imagesTr"), _files_by_case(root / "labelsTr")
    if not images:
        raise _no_images(root, key)
    check_label_names(images, labels)
    path = root / "dataset.json"
    listed = read_json_object(path, "lists of cases") if lists and path.is_file() else {}
    training, validation = (_listed_cases(root, listed, name, path) for name in ("training", "validation"))
    if training is None:
        taken = {case["image"] for case in validation or ()}
        training = [_case(images[name], labels.get(name)) for name in sorted(images)]
        training = [case for case in training if case["image"] not in taken]
    return _Source(training=training, validation=validation, name=str(path if listed else root))


def _read_datalist(root: Path, datalist: Path) -> _Source:
    path = datalist if datalist.is_file() or datalist.is_absolute() else root / datalist
    lists = read_json_object(path, "lists of cases")
    for key in lists:
        if key not in DATALIST_KEYS:
            nearest = difflib.get_close_matches(key, DATALIST_KEYS, n=1)
            hint = f", nearest is {nearest[0]!r}" if nearest else ""
            raise InputError(f"datalist {path} has the unknown key {key!r}: expected {', '.join(DATALIST_KEYS)}{hint}.")
    if "labeled" not in lists:
        raise InputError(f"datalist {path} has no key 'labeled': expected a list of {{image, label}} under it.")

    labeled, unlabeled, validation = (_listed_cases(root, lists, key, path) for key in DATALIST_KEYS)
    unlabeled = [{key: case[key] for key in case if key != "label"} for case in unlabeled or ()]
    return _Source(training=[*(labeled or ()), *unlabeled], validation=validation, name=str(path))


def _read_datastore(root: Path, key: str) -> _Source:
    path = root / DATASTORE
    store = read_json_object(path, "lists of cases")
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
        raise _no_images(root, key)
    return _Source(training=training, validation=validation or None, name=str(path))


def _no_images(root: Path, key: str) -> InputError:
    """Return the error for a folder, named by a config key, in which no image was found."""
    return InputError(
        f"{key} {root} {'has no images' if root.is_dir() else 'does not exist'}: expected .nii.gz or .nii files "
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
        entry: ``{"image": path, "label": path, "group": name}``, the last two optional, or the path of the image alone.
            The image must exist.
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
    case = _case(image, label if exists else None)
    if entry.get("group") is not None:
        if not isinstance(entry["group"], (str, int)) or not str(entry["group"]).strip():
            raise InputError(f"{place}: the group of {image} is {entry['group']!r}: expected a name or a number.")
        case["group"] = str(entry["group"]).strip()
    return case


def _without_group(cases: Iterable[Mapping[str, str]]) -> list[dict[str, str]]:
    """Return the cases with the keys that datasets read, for which groups mean nothing."""
    return [{key: case[key] for key in ("image", "label") if key in case} for case in cases]


def _case(image: Path, label: Path | None) -> dict[str, str]:
    """Return a case with absolute paths."""
    case = {"image": os.path.abspath(image)}
    return case if label is None else {**case, "label": os.path.abspath(label)}
