"""MONAI dictionary transforms that the method adds: the regression's target, and what becomes of the answers."""

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

from dbisl.bridge import normalised_entropy
from dbisl.data.partial_labels import IGNORE_LABEL


class IgnoreToBackgroundd(MapTransform):
    """Makes background of what was not annotated (255), in a label and in the answers that are compared with it.

    An overlap of both then counts the annotated voxels alone. A surface is also where the annotation ends: distances
    between surfaces mean something for whole labels only.

    Args:
        keys: answers, ``K x *spatial`` probabilities; one that is missing is skipped.
        label_key: the label, ``1 x *spatial`` class indices on the same grid.
    """

    def __init__(self, keys: KeysCollection, label_key: str) -> None:
        super().__init__(keys, allow_missing_keys=True)
        self.label_key = label_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        answer = dict(data)
        unknown = answer[self.label_key] == IGNORE_LABEL
        if unknown.any():
            answer[self.label_key] = torch.where(unknown, 0, answer[self.label_key])
            for key in self.key_iterator(answer):
                background = torch.zeros_like(answer[key])
                background[0] = 1
                answer[key] = torch.where(unknown.to(background.device), background, answer[key])
        return answer


ANSWERS = ("fused", "segmentation", "regression")


class FuseTasksd(MapTransform):
    """Splits what :class:`dbisl.inferers.DualTaskInferer` answers and fuses the two tasks.

    ``key`` becomes the fused probabilities ``(P + P_r) / 2``, or those of one task. With ``maps`` the parts are added
    beside it: ``key_segmentation`` (``P``), ``key_regression`` (``P_r``) and, where there are two tasks, ``key_sdm``
    (``R``), each ``K x *spatial``, and ``key_uncertainty``, ``1 x *spatial``: the Jensen-Shannon divergence of the two
    tasks over ``log K``, in [0, 1].

    Args:
        keys: answers, ``3K x *spatial`` (``P``, ``P_r`` and ``R``), or ``K x *spatial`` probabilities, of a single-task
            network, whose ``P_r`` is ``P``, or of one that has fused its tasks itself.
        num_classes: ``K``.
        maps: whether to add the parts.
        answer: what ``key`` becomes: ``"fused"``, ``"segmentation"`` (``P``) or ``"regression"`` (``P_r``).

    Raises:
        ValueError: for another answer, and when called, for another number of channels.
    """

    def __init__(
        self,
        keys: KeysCollection,
        num_classes: int,
        maps: bool = False,
        answer: str = "fused",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if answer not in ANSWERS:
            raise ValueError(f"answer must be one of {list(ANSWERS)}, got {answer!r}.")
        self.answer = answer
        self.num_classes = num_classes
        self.maps = maps

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        answer = dict(data)
        for key in self.key_iterator(answer):
            parts = answer[key].split(self.num_classes)
            if answer[key].shape[0] not in (self.num_classes, 3 * self.num_classes):
                raise ValueError(
                    f"{key} has {answer[key].shape[0]} channels; expected {self.num_classes} (one task) or three times "
                    "as many."
                )
            dual = len(parts) == 3
            p, p_r = (parts[0], parts[1]) if dual else (parts[0], parts[0])
            fused = (p + p_r) / 2 if dual else p
            answer[key] = {"fused": fused, "segmentation": p, "regression": p_r}[self.answer]
            if self.maps:
                answer[f"{key}_segmentation"], answer[f"{key}_regression"] = p, p_r
            if self.maps and dual:
                own = (normalised_entropy(p[None]) + normalised_entropy(p_r[None])) / 2
                answer[f"{key}_uncertainty"] = (normalised_entropy(fused[None]) - own)[0].clamp(0, 1)
                answer[f"{key}_sdm"] = parts[2]
        return answer


class Entropyd(MapTransform):
    """Adds ``key_entropy``, the predictive entropy over ``log K``: ``1 x *spatial`` in [0, 1].

    Args:
        keys: probabilities, ``K x *spatial``.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        answer = dict(data)
        for key in self.key_iterator(answer):
            answer[f"{key}_entropy"] = normalised_entropy(answer[key][None])[0]
        return answer


class KeepLargestComponentd(MapTransform):
    """Keeps, of each of some classes, the largest connected component; the rest becomes background.

    MONAI's transform of that purpose needs scikit-image; SciPy, which is here anyway, finds components too.

    Args:
        keys: class indices, ``1 x *spatial``.
        labels: the classes, each for itself; voxels that touch at a corner are connected.
    """

    def __init__(self, keys: KeysCollection, labels: Sequence[int], allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.labels = tuple(labels)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        answer = dict(data)
        for key in self.key_iterator(answer):
            classes = answer[key].clone()
            for label in self.labels:
                mask = (classes[0] == label).cpu().numpy()
                components, count = ndimage.label(mask, ndimage.generate_binary_structure(mask.ndim, mask.ndim))
                if count > 1:
                    largest = 1 + int(np.bincount(components.ravel())[1:].argmax())
                    classes[0][torch.from_numpy(mask & (components != largest)).to(classes.device)] = 0
            answer[key] = classes
        return answer


class InvertArgmaxd(MapTransform):
    """Takes probabilities to the grid that a scan was loaded with, and there to classes.

    It does what ``Invertd`` and ``AsDiscreted(argmax=True)`` do for a scan that was turned and resampled, a slab at a
    time: of a scan of 512 x 512 x 600 voxels the interpolated probabilities of three classes alone would take 1.9 GB,
    several times over. Interpolation is linear, and the border is repeated outside of the probabilities' grid.

    ``key`` becomes the most probable class, ``1 x *spatial`` unsigned bytes (16-bit integers above 256 classes) with
    the scan's own affine; ``key_entropy``, half precision, is added as :class:`Entropyd` does.

    Args:
        keys: probabilities, ``K x *spatial``, with the affine of their own grid.
        image_key: the scan, for the shape and affine that it was loaded with.
        num_classes: ``K``.
        slab: voxels of the scan to interpolate at a time.

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
        answer = dict(data)
        meta = answer[self.image_key].meta
        dims = answer[self.image_key].dim() - 1
        shape = [int(size) for size in meta["spatial_shape"][:dims]]
        affine = torch.as_tensor(meta["original_affine"], dtype=torch.float64)
        for key in self.key_iterator(answer):
            probabilities = answer[key]
            if probabilities.shape[0] != self.num_classes:
                raise ValueError(
                    f"{key} has {probabilities.shape[0]} channels; expected {self.num_classes}, the probabilities of "
                    "the fused answer (fused_slope)."
                )
            maps = probabilities.as_tensor().float()[None]
            classes = torch.empty(shape, dtype=torch.uint8 if maps.shape[1] <= 256 else torch.int16)
            entropy = torch.empty(shape, dtype=torch.float16)
            # From a voxel of the scan to one of the probabilities' grid, and on to what grid_sample counts in.
            mapping = torch.linalg.inv(probabilities.affine.double().cpu()) @ affine
            rotation, offset = mapping[:dims, :dims], mapping[:dims, -1]
            size = torch.tensor([max(voxels - 1, 1) for voxels in maps.shape[2:]], dtype=torch.float64)
            rows = max(self.slab // math.prod(shape[1:]), 1)
            for start in range(0, shape[0], rows):
                chosen = slice(start, start + rows)
                axes = [torch.arange(voxels, dtype=torch.float64) for voxels in shape]
                points = torch.stack(torch.meshgrid(axes[0][chosen], *axes[1:], indexing="ij"), dim=-1)
                grid = 2 * (points @ rotation.T + offset) / size - 1
                grid = grid.flip(-1).to(maps)[None]  # grid_sample names the last axis first
                p = functional.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=True)
                classes[chosen] = p.max(dim=1).indices[0].to(classes)
                entropy[chosen] = normalised_entropy(p)[0, 0].to(entropy)
            own = {name: meta[name] for name in ("filename_or_obj", "spatial_shape", "original_affine") if name in meta}
            answer[key] = MetaTensor(classes[None], affine=affine, meta=own)
            answer[f"{key}_entropy"] = entropy[None]
        return answer
