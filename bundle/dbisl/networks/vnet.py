"""The V-Net of the semi-supervised literature, with one decoder for each task.

It has 3x3x3 convolutions, normalisation and ReLU, strided convolutions down, transposed convolutions up, and skip
connections that are added (Milletari et al. 2016, in the form that UA-MT, DTC and later work share). Strides and
kernels may differ by axis, for thick slices. That literature normalises over the batch, which would mix labeled and
unlabeled patches here. MONAI's ``VNet`` is another network: it
has 5x5x5 kernels and five times the parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.layers.factories import Conv, Dropout
from monai.networks.layers.utils import get_norm_layer
from torch import nn

from dbisl.networks.dual_task import DualTaskNetwork, level_kernels, level_strides
from dbisl.networks.layers import InstanceNorm

CONVOLUTIONS = (1, 2, 3, 3, 3)
"""Convolutions in each stage of the V-Net, from the full resolution down."""


class DualTaskVNet(DualTaskNetwork):
    """V-Net for two tasks: one decoder classifies the voxels, the other regresses their signed distance.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: number of classes ``K`` with the background; each task predicts every class.
        features: channels of the first level (16 in the literature); each deeper level has twice as many.
        levels: number of resolutions, 2 to 5 (5 in the literature).
        strides, kernel_sizes: of each level, by axis; None: 2 and 3 everywhere. See
            :func:`dbisl.networks.dual_task.level_strides` and :func:`dbisl.networks.dual_task.level_kernels`.
        dropout: probability that a channel is dropped at the end of the encoder and of each decoder.
        norm: normalisation layer, as MONAI names it (``"instance"``, ``"batch"``, ``("group", {"num_groups": 8})``).
            Instance normalisation needs a patch longer than ``divisor`` on some axis.
        dual_task, fused_output, sdm_slope: as in :class:`dbisl.networks.DualTaskNetwork`.

    Raises:
        ValueError: when ``levels`` is not between 2 and 5, or strides or kernel sizes do not fit the levels and axes.

    Example:
        >>> network = DualTaskVNet(out_channels=3, features=4, levels=3)
        >>> output = network(torch.zeros(1, 1, 16, 16, 8))
        >>> output.logits.shape, output.sdm.shape
        (torch.Size([1, 3, 16, 16, 8]), torch.Size([1, 3, 16, 16, 8]))
        >>> DualTaskVNet(features=4, levels=3, fused_output=True)(torch.zeros(1, 1, 16, 16, 8)).shape
        torch.Size([1, 2, 16, 16, 8])
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        in_channels: int = 1,
        out_channels: int = 2,
        features: int = 16,
        levels: int = 5,
        strides: Sequence[int | Sequence[int]] | None = None,
        kernel_sizes: Sequence[int | Sequence[int]] | None = None,
        dropout: float = 0.0,
        norm: str | tuple = "instance",
        dual_task: bool = True,
        fused_output: bool = False,
        sdm_slope: float = 10.0,
    ) -> None:
        if not 2 <= levels <= len(CONVOLUTIONS):
            raise ValueError(f"levels must be between 2 and {len(CONVOLUTIONS)}, got {levels}.")
        shape: dict[str, Any] = {
            "spatial_dims": spatial_dims,
            "features": features,
            "strides": level_strides(spatial_dims, levels, strides),
            "kernel_sizes": level_kernels(spatial_dims, levels, kernel_sizes),
            "dropout": dropout,
            "norm": norm,
        }
        super().__init__(
            dual_task=dual_task,
            fused_output=fused_output,
            sdm_slope=sdm_slope,
            strides=shape["strides"],
            definition={"in_channels": in_channels, "out_channels": out_channels, "levels": levels, **shape},
        )
        self.encoder = VNetEncoder(in_channels=in_channels, **shape)
        self.segmentation = VNetDecoder(out_channels=out_channels, **shape)
        if dual_task:
            self.regression = VNetDecoder(out_channels=out_channels, **shape)


class VNetEncoder(nn.Module):
    """Encoder that turns an image into feature maps, one for each level.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        features: channels of the first level; each deeper level has twice as many.
        strides: strides by axis of each level below the first.
        kernel_sizes: kernel size by axis of each level.
        dropout: probability that a channel of the deepest level is dropped.
        norm: normalisation layer, as MONAI names it.
    """

    def __init__(
        self,
        *,
        spatial_dims: int,
        in_channels: int,
        features: int,
        strides: Sequence[tuple[int, ...]],
        kernel_sizes: Sequence[tuple[int, ...]],
        dropout: float,
        norm: str | tuple,
    ) -> None:
        super().__init__()
        self.first = _stage(in_channels, features, CONVOLUTIONS[0], kernel_sizes[0], norm)
        self.deeper = nn.ModuleList()
        for level, stride in enumerate(strides, start=1):
            above, here = features * 2 ** (level - 1), features * 2**level
            down = Conv[Conv.CONV, spatial_dims](above, here, stride, stride=stride)
            stage = _stage(here, here, CONVOLUTIONS[level], kernel_sizes[level], norm)
            self.deeper.append(nn.Sequential(*_layer_with_norm(down, spatial_dims, here, norm), *stage))
        self.dropout = Dropout[Dropout.DROPOUT, spatial_dims](dropout)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Encode ``B x C x *spatial`` into one map for each level, the full resolution first."""
        features = [self.first(image)]
        for stage in self.deeper:
            features.append(stage(features[-1]))
        features[-1] = self.dropout(features[-1])
        return features


class VNetDecoder(nn.Module):
    """Decoder that turns the feature maps of all levels into one map at the full resolution.

    Args:
        out_channels: channels of the output.
        spatial_dims, features, strides, kernel_sizes, dropout, norm: as in :class:`VNetEncoder`.
    """

    def __init__(
        self,
        *,
        spatial_dims: int,
        out_channels: int,
        features: int,
        strides: Sequence[tuple[int, ...]],
        kernel_sizes: Sequence[tuple[int, ...]],
        dropout: float,
        norm: str | tuple,
    ) -> None:
        super().__init__()
        self.up = nn.ModuleList()
        self.stages = nn.ModuleList()
        for level in reversed(range(len(strides))):
            below, here = features * 2 ** (level + 1), features * 2**level
            up = Conv[Conv.CONVTRANS, spatial_dims](below, here, strides[level], stride=strides[level])
            self.up.append(nn.Sequential(*_layer_with_norm(up, spatial_dims, here, norm)))
            self.stages.append(_stage(here, here, CONVOLUTIONS[level], kernel_sizes[level], norm))
        self.dropout = Dropout[Dropout.DROPOUT, spatial_dims](dropout)
        self.head = Conv[Conv.CONV, spatial_dims](features, out_channels, 1)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """Decode one map for each level, the full resolution first, into ``B x out_channels x *spatial``."""
        maps = features[-1]
        for depth, (up, stage) in enumerate(zip(self.up, self.stages)):  # noqa: B905 - TorchScript does not know strict
            maps = stage(up(maps) + features[-2 - depth])
        return self.head(self.dropout(maps))


def _stage(
    in_channels: int, channels: int, convolutions: int, kernel_size: tuple[int, ...], norm: str | tuple
) -> nn.Sequential:
    """Convolutions at one resolution, each with its normalisation and activation."""
    layers: list[nn.Module] = []
    dims, padding = len(kernel_size), tuple(size // 2 for size in kernel_size)
    for index in range(convolutions):
        convolution = Conv[Conv.CONV, dims](
            in_channels if index == 0 else channels, channels, kernel_size, padding=padding
        )
        layers += _layer_with_norm(convolution, dims, channels, norm)
    return nn.Sequential(*layers)


def _layer_with_norm(convolution: nn.Module, spatial_dims: int, channels: int, norm: str | tuple) -> list[nn.Module]:
    """A convolution with its normalisation and activation."""
    if norm == "instance":
        layer: nn.Module = InstanceNorm()
    else:
        layer = get_norm_layer(norm, spatial_dims=spatial_dims, channels=channels)
    return [convolution, layer, nn.ReLU(inplace=True)]
