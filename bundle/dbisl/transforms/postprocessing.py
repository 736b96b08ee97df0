"""What becomes of a network's prediction: fused tasks, entropy, classes on the scan's own grid, clean-up."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from scipy import ndimage
from torch.nn import functional

from dbisl.bridge import disagreement, fuse_tasks, normalised_entropy
from dbisl.data.partial_labels import IGNORE_LABEL

PREDICTIONS = ("fused", "segmentation", "regression")


class FuseTasksd(MapTransform):
    """Splits the prediction of :class:`dbisl.inferers.DualTaskInferer` and fuses the two tasks.

    The entry ``key`` becomes the fused probabilities ``(P + P_r) / 2``, or those of one task. With ``maps``, the parts
    are added: ``key_segmentation`` (``P``), ``key_regression`` (``P_r``) and, where there are two tasks, ``key_sdm``
    (``R``), each ``K x *spatial``, and ``key_uncertainty``, ``1 x *spatial``: the Jensen-Shannon divergence of the two
    tasks over ``log K``, in [0, 1].

    Args:
        keys: predictions, ``3K x *spatial`` (``P``, ``P_r`` and ``R``), or ``K x *spatial``: probabilities of a network
            with a single task or with fused output; ``P_r`` is then ``P``.
        num_classes: ``K``.
        maps: whether to add the parts.
        prediction: what ``key`` becomes: ``"fused"``, ``"segmentation"`` (``P``) or ``"regression"`` (``P_r``).

    Raises:
        ValueError: for another ``prediction``, and when called, for another number of channels.
    """

    def __init__(
        self,
        keys: KeysCollection,
        num_classes: int,
        maps: bool = False,
        prediction: str = "fused",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if prediction not in PREDICTIONS:
            raise ValueError(f"prediction must be one of {list(PREDICTIONS)}, got {prediction!r}.")
        self.prediction = prediction
        self.num_classes = num_classes
        self.maps = maps

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            channels = result[key].shape[0]
            if channels not in (self.num_classes, 3 * self.num_classes):
                raise ValueError(
                    f"{key} has {channels} channels; expected {self.num_classes} (one task) or three times as many."
                )
            p, *across = result[key].split(self.num_classes)
            p_r, r = across or (p, None)
            fused = p if r is None else fuse_tasks(p, p_r)
            result[key] = {"fused": fused, "segmentation": p, "regression": p_r}[self.prediction]
            if self.maps:
                result[f"{key}_segmentation"], result[f"{key}_regression"] = p, p_r
            if self.maps and r is not None:
                result[f"{key}_uncertainty"] = disagreement(p[None], p_r[None])[0]
                result[f"{key}_sdm"] = r
        return result


class Entropyd(MapTransform):
    """Adds ``key_entropy``, the predictive entropy over ``log K``: ``1 x *spatial`` in [0, 1].

    Args:
        keys: probabilities, ``K x *spatial``.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            result[f"{key}_entropy"] = normalised_entropy(result[key][None])[0]
        return result


class IgnoreToBackgroundd(MapTransform):
    """Turns the voxels that were not annotated (255) into background, in a label and in its predictions.

    An overlap of both then counts only the annotated voxels. A surface also runs where the annotation ends, so that
    distances between surfaces mean something only for whole labels.

    Args:
        keys: predictions, ``K x *spatial`` probabilities; a missing one is skipped.
        label_key: the label, ``1 x *spatial`` class indices on the same grid.
    """

    def __init__(self, keys: KeysCollection, label_key: str) -> None:
        super().__init__(keys, allow_missing_keys=True)
        self.label_key = label_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        ignored = result[self.label_key] == IGNORE_LABEL
        if ignored.any():
            result[self.label_key] = torch.where(ignored, 0, result[self.label_key])
            for key in self.key_iterator(result):
                background = torch.zeros_like(result[key])
                background[0] = 1
                result[key] = torch.where(ignored.to(background.device), background, result[key])
        return result


class KeepLargestComponentd(MapTransform):
    """Keeps the largest connected component of each given class; its other voxels become background.

    MONAI's transform for this needs scikit-image; SciPy, which is installed anyway, finds components too.

    Args:
        keys: class indices, ``1 x *spatial``.
        labels: the classes, each treated by itself; voxels that touch at a corner are connected.
    """

    def __init__(self, keys: KeysCollection, labels: Sequence[int], allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.labels = tuple(labels)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            classes = result[key].clone()
            for label in self.labels:
                mask = (classes[0] == label).cpu().numpy()
                components, count = ndimage.label(mask, ndimage.generate_binary_structure(mask.ndim, mask.ndim))
                if count > 1:
                    largest = 1 + int(np.bincount(components.ravel())[1:].argmax())
                    classes[0][torch.from_numpy(mask & (components != largest)).to(classes.device)] = 0
            result[key] = classes
        return result


class InvertArgmaxd(MapTransform):
    """Resamples probabilities to the grid of the scan as it was loaded, and takes the most probable class there.

    It does what ``Invertd`` and ``AsDiscreted(argmax=True)`` do for a scan that was reoriented and resampled, but one
    slab at a time: for a scan of 512 x 512 x 600 voxels, the interpolated probabilities of three classes alone would
    take 1.9 GB, several times over. Interpolation is linear; outside the probabilities' grid, its border is repeated.

    The entry ``key`` becomes the most probable class, ``1 x *spatial`` unsigned bytes (16-bit integers above 256
    classes) with the scan's own affine; ``key_entropy``, half precision, is added as :class:`Entropyd` does.

    Args:
        keys: probabilities, ``K x *spatial``, with the affine of their own grid.
        image_key: the scan, whose metadata has the shape and affine of the file.
        num_classes: ``K``.
        slab: number of the scan's voxels to interpolate at a time.

    Raises:
        ValueError: when called, for another number of channels.
    """

    def __init__(
        self,
        keys: KeysCollection,
        image_key: str,
        num_classes: int,
        slab: int = 4_000_000,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.image_key = image_key
        self.num_classes = num_classes
        self.slab = slab

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        meta = result[self.image_key].meta
        dims = result[self.image_key].dim() - 1
        shape = [int(size) for size in meta["spatial_shape"][:dims]]
        affine = torch.as_tensor(meta["original_affine"], dtype=torch.float64)
        kept = {name: meta[name] for name in ("filename_or_obj", "spatial_shape", "original_affine") if name in meta}
        for key in self.key_iterator(result):
            probabilities = result[key]
            if probabilities.shape[0] != self.num_classes:
                raise ValueError(
                    f"{key} has {probabilities.shape[0]} channels; expected {self.num_classes}, the probabilities of "
                    "the fused prediction (fused_output)."
                )
            # From a voxel index of the scan to one of the probabilities' grid.
            mapping = torch.linalg.inv(probabilities.affine.double().cpu()) @ affine
            classes, entropy = self._resample(probabilities.as_tensor().float()[None], shape, mapping)
            result[key] = MetaTensor(classes[None], affine=affine, meta=dict(kept))
            result[f"{key}_entropy"] = entropy[None]
        return result

    def _resample(
        self, maps: torch.Tensor, shape: Sequence[int], mapping: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The most probable class and the entropy on the scan's grid, each in ``shape``."""
        dims = len(shape)
        classes = torch.empty(shape, dtype=torch.uint8 if maps.shape[1] <= 256 else torch.int16)
        entropy = torch.empty(shape, dtype=torch.float16)
        rotation, offset = mapping[:dims, :dims], mapping[:dims, -1]
        size = torch.tensor([max(voxels - 1, 1) for voxels in maps.shape[2:]], dtype=torch.float64)
        rows = max(self.slab // math.prod(shape[1:]), 1)
        for start in range(0, shape[0], rows):
            chosen = slice(start, start + rows)
            axes = [torch.arange(voxels, dtype=torch.float64) for voxels in shape]
            points = torch.stack(torch.meshgrid(axes[0][chosen], *axes[1:], indexing="ij"), dim=-1)
            grid = 2 * (points @ rotation.T + offset) / size - 1  # grid_sample counts from -1 to 1
            grid = grid.flip(-1).to(maps)[None]  # and names the last axis first
            p = functional.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=True)
            classes[chosen] = p.max(dim=1).indices[0].to(classes)
            entropy[chosen] = normalised_entropy(p)[0, 0].to(entropy)
        return classes, entropy
