"""The SegResNet against MONAI's. ``test_dual_task.py`` tests what every backbone must do."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import SegResNet

from dbisl.networks import DualTaskSegResNet


def test_encoder_and_segmentation_decoder_are_monais_network() -> None:
    torch.manual_seed(0)
    options = {"init_filters": 8, "blocks_down": (1, 1, 1), "blocks_up": (1, 1)}
    network = DualTaskSegResNet(**options).eval()
    single = SegResNet(**options).eval()
    single.load_state_dict({**network.encoder.state_dict(), **network.segmentation.state_dict()})
    image = torch.randn(2, 1, 8, 16, 12)
    torch.testing.assert_close(single(image), network(image).logits)


@pytest.mark.parametrize(("down", "up"), [((1,), ()), ((1, 1, 1), (1,)), ((1, 1), (1, 1))])
def test_blocks_that_do_not_make_levels_are_refused(down: tuple[int, ...], up: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least 2 levels and one entry less in blocks_up"):
        DualTaskSegResNet(init_filters=8, blocks_down=down, blocks_up=up)
