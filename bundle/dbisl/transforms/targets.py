"""The target of the distance regression."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from dbisl.bridge import signed_distance_map
from dbisl.data.partial_labels import IGNORE_LABEL


class SignedDistanceMapd(MapTransform):
    """Adds the exact signed distance map (SDM) of every class of a label.

    Where a label is 255 (not annotated), the class is unknown, and so are distances nearby: the map is NaN wherever it
    depends on such voxels, that is where counting them all as inside gives another distance than counting them all as
    outside.

    Args:
        keys: labels, ``1 x *spatial`` class indices with their voxel size in the metadata.
        sdm_key: key of the new map, ``K x *spatial`` in [-1, 1] (half precision: wrong by at most 0.0005 of the band).
        num_classes: ``K``, with the background.
        band: distance at which the map is truncated, in millimetres.
        allow_missing_keys: whether an unlabeled scan, which has no label, passes unchanged.
    """

    def __init__(
        self, keys: KeysCollection, sdm_key: str, num_classes: int, band: float, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.sdm_key = sdm_key
        self.num_classes = num_classes
        self.band = band

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            label = result[key]
            spacing = label.pixdim.tolist()[: label.dim() - 1]
            one_hot = label[0] == torch.arange(self.num_classes).view(-1, *[1] * (label.dim() - 1))
            sdm = signed_distance_map(one_hot, self.band, spacing)
            ignored = (label[0] == IGNORE_LABEL).as_tensor()
            if ignored.any():
                largest = signed_distance_map(one_hot | ignored, self.band, spacing)
                sdm = torch.where(sdm == largest, sdm, math.nan)
            result[self.sdm_key] = MetaTensor(sdm.half(), meta=label.meta)
        return result
