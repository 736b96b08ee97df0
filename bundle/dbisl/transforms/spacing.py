"""Resampling of scans."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from typing import Any

from monai.transforms import Spacingd


class SpacingOfImagesd(Spacingd):
    """MONAI's ``Spacingd`` for data with other entries whose keys begin with the name of an image.

    From MONAI 1.6 on, ``Spacingd`` takes every entry ``image_...`` for the metadata of ``image``. Servers put paths
    there, as MONAI Label does with ``image_path``; this transform passes them by.
    """

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:
        paths = {key: value for key, value in data.items() if isinstance(value, (str, os.PathLike))}
        rest = {key: value for key, value in data.items() if key not in paths}
        return {**paths, **super().__call__(rest, lazy=lazy)}
