"""MONAI dictionary transforms that the method adds: the regression's target, and what becomes of the answers."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from typing import Any

from monai.transforms import Spacingd


class SpacingOfImagesd(Spacingd):
    """MONAI's ``Spacingd``, for data in which other entries begin with the name of an image.

    From MONAI 1.6 on, ``Spacingd`` takes every entry ``image_...`` for the metadata of ``image``. Servers put paths
    there (MONAI Label: ``image_path``), which are none.
    """

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:
        apart = {key: value for key, value in data.items() if isinstance(value, (str, os.PathLike))}
        rest = {key: value for key, value in data.items() if key not in apart}
        return {**apart, **super().__call__(rest, lazy=lazy)}
