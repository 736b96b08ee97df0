"""Split the cases of a data set into training and validation, by patient and into folds, and hide labels."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dbisl.utils.errors import InputError
from dbisl.utils.files import case_name


@dataclass(frozen=True)
class Split:
    """Cases for training and for validation.

    Attributes:
        training: with and without labels.
        validation: with labels.
        held_out: how many labeled cases of the training list were taken for validation.
        origin: what chose the validation cases, and what was left out, for the log.
    """

    training: list[dict[str, str]]
    validation: list[dict[str, str]]
    held_out: int
    origin: str


def split_cases(
    training: Sequence[dict[str, str]],
    validation: Sequence[dict[str, str]] | None,
    source: str,
    group: str | None = None,
    num_folds: int | None = None,
    fold: int | None = None,
) -> Split:
    """Choose the validation cases, so that all cases of one group (one patient) are on the same side.

    - With ``fold``: the groups that have labels are sorted by name, and every ``num_folds``-th of them, from number
      ``fold`` on, is for validation. This does not depend on a seed: the folds of several trainings always fit
      together. Cases that are listed for validation are in no fold.
    - Without: the listed cases are for validation; where no list says so, the last fifth of the groups that have
      labels, rounded down, in the order of their first labeled case.

    The unlabeled cases of a group that a fold or the last fifth takes for validation are left out.

    Args:
        training: cases, ``{"image": path}`` with the optional keys ``"label"`` and ``"group"``.
        validation: cases that are listed for validation; None if nothing lists any.
        source: the folder or file of the cases, for messages.
        group: a regular expression that is searched in each case's name. Its first group, or the whole match, names the
            patient. None: each case is a group of its own. The key ``"group"`` of a case comes first.
        num_folds: number of folds, at least 2; None: no folds.
        fold: the fold for validation, from 0 to ``num_folds - 1``; None: no folds.

    Raises:
        InputError: if ``group`` is no regular expression or does not match a name, if there is no such fold, or if a
            group is listed for training and for validation.
    """
    _check_fold(num_folds, fold)
    groups = _groups_by_image([*training, *(validation or ())], group)
    if validation is not None:
        _require_whole_groups(training, validation, groups, source)
    of_labels = list(dict.fromkeys(groups[case["image"]] for case in training if "label" in case))
    if num_folds is not None and fold is not None:
        taken = _groups_of_fold(of_labels, num_folds, fold, source)
        origin = f"fold {fold} of {num_folds}, {len(taken)} of {len(of_labels)} groups with labels"
        if validation:
            origin += f"; the {len(validation)} validation cases of {source} are in no fold"
    elif validation is None:
        taken = set(of_labels[len(of_labels) - len(of_labels) // 5 :])
        named = any(groups[case["image"]] != case["image"] for case in training)
        unit = f"{len(of_labels)} groups with labels" if named else "labeled cases"
        origin = f"the last fifth of the {unit}, because {source} lists no validation cases"
    else:
        return Split(list(training), list(validation), 0, source)

    outside = [case for case in training if groups[case["image"]] not in taken]
    held_out = [case for case in training if groups[case["image"]] in taken and "label" in case]
    left_out = len(training) - len(outside) - len(held_out)
    if left_out:
        origin += f"; {left_out} unlabeled cases of these groups are left out"
    return Split(outside, held_out, len(held_out), origin)


def hide_labels(
    labeled: list[dict[str, str]], num_labeled: int | None, held_out: int
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Return the first ``num_labeled`` cases, and the others without their label.

    Args:
        labeled: labeled training cases.
        num_labeled: how many keep their label; None for all.
        held_out: how many labeled cases were taken for validation, for the message.

    Raises:
        InputError: if ``num_labeled`` is not a whole number from 1 to the number of cases.
    """
    if num_labeled is None:
        return labeled, []
    if not _is_whole(num_labeled) or num_labeled < 1:
        raise InputError(f"num_labeled is {num_labeled!r}: expected a whole number of at least 1, or null for all.")
    if num_labeled > len(labeled):
        reason = f" ({held_out} more are held out for validation)" if held_out else ""
        raise InputError(
            f"num_labeled is {num_labeled}, but {len(labeled)} labeled training cases exist{reason}: "
            f"expected 1 to {len(labeled)}."
        )
    return labeled[:num_labeled], [{"image": case["image"]} for case in labeled[num_labeled:]]


def require_usable(
    labeled: Sequence[Mapping[str, str]],
    unlabeled: Sequence[Mapping[str, str]],
    validation: Sequence[Mapping[str, str]],
    source: str,
    labels_required: bool,
) -> None:
    """Check that validation cases have labels and are not for training, and that there is a label to train on.

    Args:
        labeled, unlabeled, validation: the cases.
        source: the folder or file of the cases, for messages.
        labels_required: whether having no labeled training case is an error.

    Raises:
        InputError: if one of these does not hold; the sentence names the case.
    """
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


def _check_fold(num_folds: Any, fold: Any) -> None:
    """Check that both are given or none, and that there is such a fold."""
    if num_folds is None and fold is None:
        return
    if num_folds is None or fold is None:
        raise InputError(f"num_folds is {num_folds!r} and fold is {fold!r}: expected both, or null for both.")
    if not _is_whole(num_folds) or num_folds < 2:
        raise InputError(f"num_folds is {num_folds!r}: expected a whole number of at least 2, or null for no folds.")
    if not _is_whole(fold) or not 0 <= fold < num_folds:
        raise InputError(f"fold is {fold!r}: expected a whole number from 0 to {num_folds - 1} (num_folds - 1).")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _groups_by_image(cases: Iterable[Mapping[str, str]], group: str | None) -> dict[str, str]:
    """Return the group of each image. An image that is a group of its own has its path as the group."""
    try:
        pattern = None if group is None else re.compile(group)
    except (re.error, TypeError) as error:
        raise InputError(
            f"group is {group!r}, which is no regular expression ({error}): expected one such as '^(patient[0-9]+)'."
        ) from None
    groups = {}
    for case in cases:
        image = case["image"]
        groups[image] = case["group"] if "group" in case else image if pattern is None else _matched(pattern, image)
    return groups


def _matched(pattern: re.Pattern[str], image: str) -> str:
    """Return the part of a case's name that names its group."""
    match = pattern.search(case_name(image))
    found = None if match is None else match.group(1 if pattern.groups else 0)
    if not found:
        raise InputError(
            f"group is {pattern.pattern!r}, which finds no name in the case {case_name(image)} ({image}): expected a "
            "regular expression that finds one in the name of every case."
        )
    return found


def _require_whole_groups(
    training: Iterable[Mapping[str, str]],
    validation: Iterable[Mapping[str, str]],
    groups: Mapping[str, str],
    source: str,
) -> None:
    """Refuse a group with cases on both sides. One case on both sides is another problem, with its own message."""
    trained = {groups[case["image"]]: case for case in training}
    for case in validation:
        other = trained.get(groups[case["image"]])
        if other is not None and other["image"] != case["image"]:
            kind = "labeled" if "label" in other else "unlabeled"
            raise InputError(
                f"{source}: the group {groups[case['image']]} is split: {case['image']} is for validation and the "
                f"{kind} scan {other['image']} for training: expected all its scans in one of them, or the others in "
                "neither (train.list or a datalist says which scans are for training)."
            )


def _groups_of_fold(groups: Sequence[str], num_folds: int, fold: int, source: str) -> set[str]:
    """Return every ``num_folds``-th group by name, from number ``fold`` on.

    Names often follow the hospital or the disease. So a fold takes its groups from the whole list, not from one part.
    """
    if num_folds > len(groups):
        expected = f"2 to {len(groups)}" if len(groups) > 1 else "at least 2 labeled groups"
        raise InputError(
            f"num_folds is {num_folds}, but {source} has {len(groups)} groups with labels for training: expected "
            f"{expected}."
        )
    # A group that is one image is sorted by its name, because its path differs between machines.
    return set(sorted(groups, key=lambda name: (case_name(name), name))[fold::num_folds])
