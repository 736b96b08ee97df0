"""The V-Net of the semi-supervised literature, with one decoder a task; and another backbone of the same contract.

3x3x3 convolutions, normalisation and ReLU, strided convolutions down, transposed convolutions up, and skips that are
added (Milletari et al. 2016, in the form that UA-MT, DTC and later work share; these normalise over the batch, which
here would mix labeled and unlabeled patches). MONAI's own ``VNet`` is another network: 5x5x5 kernels and five times the
parameters.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from monai.networks.layers.factories import Conv, Dropout
from monai.networks.layers.utils import get_norm_layer
from monai.networks.nets import SegResNet
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

CONVOLUTIONS = (1, 2, 3, 3, 3)
"""Convolutions in the stages of the V-Net, from the full resolution down."""


class _NormaliseEach(torch.autograd.Function):
    """Each item of a batch normalised by itself: what batch normalisation does to a batch of one."""

    @staticmethod
    def forward(ctx: Any, maps: torch.Tensor, eps: float) -> torch.Tensor:
        normalised = torch.empty_like(maps)
        ctx.statistics = []
        for item, to in zip(maps.split(1), normalised.split(1), strict=True):
            result, mean, inverse_deviation = torch.native_batch_norm(item, None, None, None, None, True, 0.0, eps)
            to.copy_(result)
            ctx.statistics.append((mean, inverse_deviation))
        ctx.eps = eps
        ctx.save_for_backward(maps)
        return normalised

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (maps,) = ctx.saved_tensors
        of_maps = torch.empty_like(maps)
        gradients = gradient.contiguous(memory_format=_channels_last(maps)).split(1)
        for item, of_item, to, saved in zip(maps.split(1), gradients, of_maps.split(1), ctx.statistics, strict=True):
            to.copy_(
                torch.ops.aten.native_batch_norm_backward(
                    of_item, item, None, None, None, *saved, True, ctx.eps, [True, False, False]
                )[0]
            )
        return of_maps, None


def _channels_last(maps: torch.Tensor) -> torch.memory_format:
    return torch.channels_last_3d if maps.dim() == 5 else torch.channels_last


def _copied_by_pytorch(maps: torch.Tensor) -> bool:
    """Whether the maps are on a CPU, channels last, and more than the one voxel that PyTorch refuses."""
    return (
        maps.device.type == "cpu"
        and maps.dim() in (4, 5)
        and len(maps) > 0
        and math.prod(maps.shape[2:]) > 1
        and not maps.is_contiguous()
        and maps.is_contiguous(memory_format=_channels_last(maps))
    )


class InstanceNorm(nn.Module):
    """Instance normalisation, without weights, that keeps the channels last where they are.

    PyTorch's own copies such maps into the other format and back, forward and backward: on a CPU that took a fifth of
    a training step. Elsewhere, and when exported, this is PyTorch's.

    Args:
        eps: added to the variance, as in PyTorch's.
    """

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """``B x C x *spatial`` to the same, each channel of each item with mean 0 and variance 1.

        Raises:
            ValueError: when there is one voxel: nothing can be normalised.
        """
        if not torch.jit.is_scripting():  # noqa: SIM102 - a condition of its own: what it guards is not compiled
            if not torch.jit.is_tracing() and _copied_by_pytorch(maps):
                return _NormaliseEach.apply(maps, self.eps)
        return functional.instance_norm(maps, eps=self.eps)


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


def fuse(logits: torch.Tensor, sdm: torch.Tensor, slope: float) -> torch.Tensor:
    """The fused probabilities ``(P + P_r) / 2`` of both answers, ``B x K x *spatial``, float32."""
    return (torch.softmax(logits.float(), dim=1) + torch.softmax(slope * sdm.float(), dim=1)) / 2


class _DualTask(nn.Module):
    """A shared encoder, and a decoder of its own for each task; a backbone adds the three as modules.

    Args:
        regression: whether there is the second task.
        fused_slope: None: the network answers with what its losses need. A number: with one tensor, the probabilities
            of the classes, float32, fused over both tasks where there are two, this being the slope of ``T_r2s``. The
            weights are the same.
        divisor: of which every spatial size is a multiple.
    """

    __constants__ = ["dual", "fused"]  # noqa: RUF012 - by which TorchScript compiles one branch of forward alone

    def __init__(self, regression: bool, fused_slope: float | None, divisor: int) -> None:
        super().__init__()
        self.divisor = divisor
        self.dual = regression
        self.fused = fused_slope is not None
        self.slope = 0.0 if fused_slope is None else float(fused_slope)

    def forward(self, image: torch.Tensor):  # type: ignore[no-untyped-def]
        """``B x C x *spatial`` to ``(logits, sdm)``, each ``B x K x *spatial``, or to the fused probabilities.

        ``sdm`` is the signed distance map of each class in units of the band: in ``[-1, 1]``, positive inside. Of a
        single task the answer is one tensor, logits or probabilities.

        Raises:
            ValueError: when a spatial size is no multiple of ``divisor``.
        """
        for size in image.shape[2:]:
            if size % self.divisor != 0:
                raise ValueError(
                    "The network halves its input several times: every spatial size must be a multiple of "
                    f"{self.divisor}, got {list(image.shape[2:])}."
                )
        features = self.encoder(image)  # type: ignore[operator]
        logits = self.segmentation(features)  # type: ignore[operator]
        if self.dual:
            sdm = torch.tanh(self.regression(features))  # type: ignore[operator]
            if self.fused:
                return fuse(logits, sdm, self.slope)
            return logits, sdm
        return torch.softmax(logits.float(), dim=1) if self.fused else logits


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


class _SegResNetEncoder(SegResNet):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        del self.up_layers, self.up_samples, self.conv_final

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:  # type: ignore[override]
        """``B x C x *spatial`` to one map a level, the deepest first."""
        maps = self.encode(image)[1]
        maps.reverse()
        return maps


class _SegResNetDecoder(SegResNet):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        del self.convInit, self.down_layers

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:  # type: ignore[override]
        """One map a level, the deepest first, to ``B x out_channels x *spatial``."""
        return self.decode(maps[0], maps)


class DualTaskSegResNet(_DualTask):
    """MONAI's ``SegResNet`` (Myronenko 2018) with one encoder and a decoder for each task: another backbone.

    Args:
        regression, fused_slope: as in :class:`DualTaskVNet`.
        options: those of MONAI's ``SegResNet``: ``spatial_dims``, ``in_channels``, ``out_channels`` (``K`` classes,
            background included), ``init_filters``, ``dropout_prob``, ``norm``, ``blocks_down``, ``blocks_up`` ...
    """

    def __init__(self, regression: bool = True, fused_slope: float | None = None, **options: Any) -> None:
        encoder = _SegResNetEncoder(**options)
        super().__init__(regression, fused_slope, divisor=2 ** (len(encoder.blocks_down) - 1))
        self.encoder = encoder
        self.segmentation = _SegResNetDecoder(**options)
        if regression:
            self.regression = _SegResNetDecoder(**options)
