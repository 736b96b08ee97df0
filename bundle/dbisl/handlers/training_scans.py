"""Warning of scores on scans that a network was trained on."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from monai.utils import ensure_tuple
from monai.utils.enums import CommonKeys as Keys

from dbisl.utils.files import case_name
from dbisl.utils.recipe import read_record, record_path

logger = logging.getLogger(__name__)


def warn_of_training_scans(
    ckpt_path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    cases: Iterable[Mapping[str, Any]],
    record_expected: bool = False,
) -> None:
    """Log a warning if a network is evaluated on scans that it was trained on, or if that is not known.

    The record of the weights, such as ``model.json``, says which labeled scans they were trained on. A scan with the
    name of one of them in another folder may be a copy of it, and gives a warning too.

    Args:
        ckpt_path: the file of the weights, or a list of files.
        cases: the cases to evaluate, ``{"image": path, ...}``.
        record_expected: whether weights without a record give a warning.
    """
    images = {os.path.realpath(case[Keys.IMAGE]) for case in cases}
    for path in ensure_tuple(ckpt_path):
        trained_on = _trained_on(path)
        if not trained_on and record_expected:
            logger.warning(
                f"{path} has no record of its training scans ({record_path(path).name}): the scores count only if it "
                f"was trained on none of these {len(images)} scans."
            )
        seen = images.intersection(trained_on)
        names = {case_name(image) for image in trained_on}
        alike = [image for image in images - seen if case_name(image) in names]
        if seen:
            logger.warning(
                f"{path} was trained on {len(seen)} of the {len(images)} scans that are evaluated, such as "
                f"{min(seen)}: their scores are too good."
            )
        if alike:
            logger.warning(
                f"{path} was trained on scans with the names of {len(alike)} of the {len(images)} scans that are "
                f"evaluated, such as {case_name(min(alike))}: if they are the same scans, their scores are too good."
            )


def _trained_on(path: str | os.PathLike[str]) -> set[str]:
    """Return the labeled training scans of weights as their record lists them; nothing if there is no record."""
    record = read_record(path) or {}
    return {os.path.realpath(image) for image in record.get("trained_on", ())}
