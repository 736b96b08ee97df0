"""The V-Net of the semi-supervised literature, with one decoder a task; and another backbone of the same contract.

3x3x3 convolutions, normalisation and ReLU, strided convolutions down, transposed convolutions up, and skips that are
added (Milletari et al. 2016, in the form that UA-MT, DTC and later work share; these normalise over the batch, which
here would mix labeled and unlabeled patches). MONAI's own ``VNet`` is another network: 5x5x5 kernels and five times the
parameters.
"""

from __future__ import annotations

from typing import Any

import torch
from monai.networks.nets import SegResNet

from dbisl.networks.dual_task import _DualTask


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
