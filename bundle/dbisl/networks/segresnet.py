"""MONAI's SegResNet as a backbone."""

from __future__ import annotations

from typing import Any

import torch
from monai.networks.nets import SegResNet

from dbisl.networks.dual_task import DualTaskNetwork


class DualTaskSegResNet(DualTaskNetwork):
    """MONAI's ``SegResNet`` (Myronenko 2018) with one encoder and a decoder for each task.

    Args:
        dual_task, fused_output, sdm_slope: as in :class:`dbisl.networks.DualTaskNetwork`.
        options: arguments of MONAI's ``SegResNet``: ``spatial_dims``, ``in_channels``, ``out_channels`` (``K`` classes
            with the background), ``init_filters``, ``dropout_prob``, ``norm``, ``blocks_down``, ``blocks_up`` ...

    Raises:
        ValueError: when the blocks are not those of at least 2 levels.
    """

    def __init__(
        self, dual_task: bool = True, fused_output: bool = False, sdm_slope: float = 10.0, **options: Any
    ) -> None:
        down, up = options.get("blocks_down", (1, 2, 2, 4)), options.get("blocks_up", (1, 1, 1))
        if len(down) < 2 or len(up) != len(down) - 1:
            raise ValueError(
                f"expected blocks_down for at least 2 levels and one entry less in blocks_up, got {list(down)} and "
                f"{list(up)} (levels must be 2 to 5)."
            )
        encoder = _SegResNetEncoder(**options)
        divisor = 2 ** (len(encoder.blocks_down) - 1)
        super().__init__(dual_task=dual_task, fused_output=fused_output, sdm_slope=sdm_slope, divisor=divisor)
        self.encoder = encoder
        self.segmentation = _SegResNetDecoder(**options)
        if dual_task:
            self.regression = _SegResNetDecoder(**options)


class _SegResNetEncoder(SegResNet):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        del self.up_layers, self.up_samples, self.conv_final

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:  # type: ignore[override]
        """Encode ``B x C x *spatial`` into one map for each level, the deepest first."""
        maps = self.encode(image)[1]
        maps.reverse()
        return maps


class _SegResNetDecoder(SegResNet):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        del self.convInit, self.down_layers

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:  # type: ignore[override]
        """Decode one map for each level, the deepest first, into ``B x out_channels x *spatial``."""
        return self.decode(maps[0], maps)
