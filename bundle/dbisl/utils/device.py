"""A typo in an override is an error, not a silent no-op.

``python -m monai.bundle run training --epoch 3`` adds a key ``epoch`` to the config, which nothing reads, and trains
as if it had not been given; a misspelled key of an override file does the same. :func:`check_overrides`, called from
the config itself, refuses both.
"""

from __future__ import annotations

import torch

from dbisl.utils.errors import InputError


def check_device(device: torch.device | str) -> None:
    """Check that this machine has a device, before a network is sent there.

    Raises:
        InputError: when it has not.
    """
    try:
        torch.empty(1, device=device)
    except (AssertionError, RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"device is {str(device)!r}, which cannot be used here ({reason}): expected one of "
            f"{['cpu', *(f'cuda:{index}' for index in range(torch.cuda.device_count()))]}."
        ) from None
