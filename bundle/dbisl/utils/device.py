"""Check the device before anything is sent there."""

from __future__ import annotations

import torch

from dbisl.utils.errors import InputError
from dbisl.utils.files import first_line


def check_device(device: torch.device | str) -> None:
    """Check that this machine has a device.

    Args:
        device: the device, such as ``"cuda:0"``.

    Raises:
        InputError: if the machine does not have it.
    """
    try:
        torch.empty(1, device=device)
    except (AssertionError, RuntimeError, TypeError) as error:
        raise InputError(
            f"device is {str(device)!r}, which cannot be used here ({first_line(error, length=300)}): expected one of "
            f"{['cpu', *(f'cuda:{index}' for index in range(torch.cuda.device_count()))]}."
        ) from None
