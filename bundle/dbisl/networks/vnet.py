"""The V-Net of the semi-supervised literature, with one decoder a task; and another backbone of the same contract.

3x3x3 convolutions, normalisation and ReLU, strided convolutions down, transposed convolutions up, and skips that are
added (Milletari et al. 2016, in the form that UA-MT, DTC and later work share; these normalise over the batch, which
here would mix labeled and unlabeled patches). MONAI's own ``VNet`` is another network: 5x5x5 kernels and five times the
parameters.
"""

from __future__ import annotations

from typing import Any

import torch
from monai.networks.layers.factories import Conv, Dropout
from monai.networks.layers.utils import get_norm_layer
from torch import nn

from dbisl.networks.dual_task import _DualTask
from dbisl.networks.layers import InstanceNorm

CONVOLUTIONS = (1, 2, 3, 3, 3)
"""Convolutions in the stages of the V-Net, from the full resolution down."""


def _normalised(convolution: nn.Module, spatial_dims: int, channels: int, norm: str | tuple) -> list[nn.Module]:
    own = norm == "instance"
    layer = InstanceNorm() if own else get_norm_layer(norm, spatial_dims=spatial_dims, channels=channels)
    return [convolution, layer, nn.ReLU(inplace=True)]


def _stage(spatial_dims: int, in_channels: int, channels: int, convolutions: int, norm: str | tuple) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index in range(convolutions):
        convolution = Conv[Conv.CONV, spatial_dims](in_channels if index == 0 else channels, channels, 3, padding=1)
        layers += _normalised(convolution, spatial_dims, channels, norm)
    return nn.Sequential(*layers)


def _check_levels(levels: int) -> None:
    if not 2 <= levels <= len(CONVOLUTIONS):
        raise ValueError(f"levels must be between 2 and {len(CONVOLUTIONS)}, got {levels}.")


class VNetEncoder(nn.Module):
    """Image to the feature maps of every level.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        features: channels of the first level; each level below has twice as many.
        levels: resolutions, 2 to 5; every level but the first halves the size.
        dropout: probability with which a channel of the deepest level is dropped.
        norm: normalisation layer, as MONAI names them.
    """

    def __init__(
        self, *, spatial_dims: int, in_channels: int, features: int, levels: int, dropout: float, norm: str | tuple
    ) -> None:
        super().__init__()
        _check_levels(levels)
        channels = [features * 2**level for level in range(levels)]
        self.first = _stage(spatial_dims, in_channels, channels[0], CONVOLUTIONS[0], norm)
        self.deeper = nn.ModuleList()
        for above, here, convolutions in zip(channels, channels[1:], CONVOLUTIONS[1:], strict=False):
            down = _normalised(Conv[Conv.CONV, spatial_dims](above, here, 2, stride=2), spatial_dims, here, norm)
            self.deeper.append(nn.Sequential(*down, *_stage(spatial_dims, here, here, convolutions, norm)))
        self.dropout = Dropout[Dropout.DROPOUT, spatial_dims](dropout)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """``B x C x *spatial`` to one map a level, the full resolution first."""
        features = [self.first(image)]
        for stage in self.deeper:
            features.append(stage(features[-1]))
        features[-1] = self.dropout(features[-1])
        return features


class VNetDecoder(nn.Module):
    """Feature maps of every level to one map at the full resolution.

    Args:
        out_channels: channels of the answer; the other arguments are those of :class:`VNetEncoder`.
    """

    def __init__(
        self, *, spatial_dims: int, out_channels: int, features: int, levels: int, dropout: float, norm: str | tuple
    ) -> None:
        super().__init__()
        _check_levels(levels)
        channels = [features * 2**level for level in range(levels)]
        self.up = nn.ModuleList()
        self.stages = nn.ModuleList()
        for level in reversed(range(levels - 1)):
            up = Conv[Conv.CONVTRANS, spatial_dims](channels[level + 1], channels[level], 2, stride=2)
            self.up.append(nn.Sequential(*_normalised(up, spatial_dims, channels[level], norm)))
            self.stages.append(_stage(spatial_dims, channels[level], channels[level], CONVOLUTIONS[level], norm))
        self.dropout = Dropout[Dropout.DROPOUT, spatial_dims](dropout)
        self.head = Conv[Conv.CONV, spatial_dims](features, out_channels, 1)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """One map a level, the full resolution first, to ``B x out_channels x *spatial``."""
        answer = features[-1]
        for depth, (up, stage) in enumerate(zip(self.up, self.stages)):  # noqa: B905 - TorchScript knows no strict
            answer = stage(up(answer) + features[-2 - depth])
        return self.head(self.dropout(answer))


class DualTaskVNet(_DualTask):
    """Two tasks: voxels are classified by one decoder, their signed distance regressed by the other.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: number of classes ``K``, background included; every task answers for each class.
        features: channels of the first level (16 in the literature); each level below has twice as many.
        levels: resolutions, 2 to 5 (5 in the literature). Spatial sizes must be multiples of
            ``divisor = 2 ** (levels - 1)``.
        dropout: probability with which a channel is dropped at the end of the encoder and of each decoder.
        norm: normalisation layer, as MONAI names them (``"instance"``, ``"batch"``, ``("group", {"num_groups": 8})``).
            Of a patch that is ``divisor`` long on every axis nothing can be normalised by instance.
        regression: False: the segmentation alone, the single-task V-Net that is the baseline.
        fused_slope: None: logits and SDM, which losses need. A number: the fused probabilities, this being the slope
            of ``T_r2s``.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        in_channels: int = 1,
        out_channels: int = 2,
        features: int = 16,
        levels: int = 5,
        dropout: float = 0.0,
        norm: str | tuple = "instance",
        regression: bool = True,
        fused_slope: float | None = None,
    ) -> None:
        super().__init__(regression, fused_slope, divisor=2 ** (levels - 1))
        shape: dict[str, Any] = {"spatial_dims": spatial_dims, "features": features, "levels": levels}
        shape |= {"dropout": dropout, "norm": norm}
        self.encoder = VNetEncoder(in_channels=in_channels, **shape)
        self.segmentation = VNetDecoder(out_channels=out_channels, **shape)
        if regression:
            self.regression = VNetDecoder(out_channels=out_channels, **shape)
