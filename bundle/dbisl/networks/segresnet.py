"""MONAI's SegResNet as a backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.blocks.segresnet_block import ResBlock, get_conv_layer, get_upsample_layer
from monai.networks.nets import SegResNet
from torch import nn

from dbisl.networks.dual_task import DualTaskNetwork, level_kernels, level_strides


class DualTaskSegResNet(DualTaskNetwork):
    """MONAI's ``SegResNet`` (Myronenko 2018) with one encoder and a decoder for each task.

    Args:
        dual_task, fused_output, sdm_slope: as in :class:`dbisl.networks.DualTaskNetwork`.
        strides, kernel_sizes: of each level, by axis; None: 2 and 3 everywhere. See
            :func:`dbisl.networks.dual_task.level_strides` and :func:`dbisl.networks.dual_task.level_kernels`.
        options: arguments of MONAI's ``SegResNet``: ``spatial_dims``, ``in_channels``, ``out_channels`` (``K`` classes
            with the background), ``init_filters``, ``dropout_prob``, ``norm``, ``blocks_down``, ``blocks_up`` ...

    Raises:
        ValueError: when the blocks are not those of at least 2 levels, or strides or kernel sizes do not fit the levels
            and axes.
    """

    def __init__(
        self,
        dual_task: bool = True,
        fused_output: bool = False,
        sdm_slope: float = 10.0,
        strides: Sequence[int | Sequence[int]] | None = None,
        kernel_sizes: Sequence[int | Sequence[int]] | None = None,
        **options: Any,
    ) -> None:
        down, up = options.get("blocks_down", (1, 2, 2, 4)), options.get("blocks_up", (1, 1, 1))
        if len(down) < 2 or len(up) != len(down) - 1:
            raise ValueError(
                f"expected blocks_down for at least 2 levels and one entry less in blocks_up, got {list(down)} and "
                f"{list(up)} (levels must be 2 to 5)."
            )
        if options.get("upsample_mode") == "pixelshuffle" and strides is not None:
            raise ValueError("upsample_mode 'pixelshuffle' enlarges all axes alike: expected strides of None.")
        dims, levels = options.get("spatial_dims", 3), len(down)
        shape = {
            "strides": level_strides(dims, levels, strides),
            "kernel_sizes": level_kernels(dims, levels, kernel_sizes),
        }
        super().__init__(
            dual_task=dual_task,
            fused_output=fused_output,
            sdm_slope=sdm_slope,
            strides=shape["strides"],
            definition={**options, **shape},
        )
        self.encoder = _SegResNetEncoder(**shape, **options)
        self.segmentation = _SegResNetDecoder(**shape, **options)
        if dual_task:
            self.regression = _SegResNetDecoder(**shape, **options)


class _ShapedSegResNet(SegResNet):
    """MONAI's ``SegResNet`` with strides and kernel sizes by level and axis, under the same names of weights.

    MONAI's blocks take one number per axis, although their types say one number.
    """

    def __init__(
        self, strides: Sequence[tuple[int, ...]], kernel_sizes: Sequence[tuple[int, ...]], **options: Any
    ) -> None:
        self.strides = strides
        self.kernel_sizes = kernel_sizes
        super().__init__(**options)
        if set(kernel_sizes[0]) != {3}:
            self.convInit = self._convolution(self.in_channels, self.init_filters, kernel_sizes[0])

    def _make_down_layers(self) -> nn.ModuleList:
        layers = nn.ModuleList()
        for level, (blocks, kernel) in enumerate(zip(self.blocks_down, self.kernel_sizes, strict=True)):
            channels = self.init_filters * 2**level
            down: nn.Module = nn.Identity()
            if level > 0:
                strides = self.strides[level - 1]
                # An axis that is reduced needs a kernel that reads all its voxels.
                reading = tuple(
                    edge if stride == 1 else max(edge, 3) for edge, stride in zip(kernel, strides, strict=True)
                )
                down = self._convolution(channels // 2, channels, reading, strides)
            layers.append(nn.Sequential(down, *(self._block(channels, kernel) for _ in range(blocks))))
        return layers

    def _make_up_layers(self) -> tuple[nn.ModuleList, nn.ModuleList]:
        layers, samples = nn.ModuleList(), nn.ModuleList()
        for depth, blocks in enumerate(self.blocks_up):
            level = len(self.blocks_up) - 1 - depth
            channels = self.init_filters * 2**level
            layers.append(nn.Sequential(*(self._block(channels, self.kernel_sizes[level]) for _ in range(blocks))))
            samples.append(
                nn.Sequential(
                    get_conv_layer(self.spatial_dims, 2 * channels, channels, kernel_size=1),
                    get_upsample_layer(
                        self.spatial_dims,
                        channels,
                        upsample_mode=self.upsample_mode,
                        scale_factor=self.strides[level],  # type: ignore[arg-type]
                    ),
                )
            )
        return layers, samples

    def _block(self, channels: int, kernel: tuple[int, ...]) -> ResBlock:
        block = ResBlock(self.spatial_dims, channels, norm=self.norm, act=self.act)
        if set(kernel) != {3}:
            block.conv1, block.conv2 = (self._convolution(channels, channels, kernel) for _ in range(2))
        return block

    def _convolution(
        self, in_channels: int, channels: int, kernel: tuple[int, ...], stride: int | tuple[int, ...] = 1
    ) -> nn.Module:
        return get_conv_layer(
            self.spatial_dims,
            in_channels,
            channels,
            kernel_size=kernel,  # type: ignore[arg-type]
            stride=stride,  # type: ignore[arg-type]
        )


class _SegResNetEncoder(_ShapedSegResNet):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        del self.up_layers, self.up_samples, self.conv_final

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:  # type: ignore[override]
        """Encode ``B x C x *spatial`` into one map for each level, the deepest first."""
        maps = self.encode(image)[1]
        maps.reverse()
        return maps


class _SegResNetDecoder(_ShapedSegResNet):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        del self.convInit, self.down_layers

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:  # type: ignore[override]
        """Decode one map for each level, the deepest first, into ``B x out_channels x *spatial``."""
        return self.decode(maps[0], maps)
