"""Set how the process manages the memory of the host (the CPU)."""

from __future__ import annotations

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""``M_TRIM_THRESHOLD`` and ``M_MMAP_MAX`` of glibc's ``malloc.h``."""


def keep_freed_memory() -> bool:
    """Reuse the memory of freed tensors instead of returning it to the system, as PyTorch does on a GPU.

    By default glibc returns every freed block of 32 MiB or more to the system, and the system clears each page again
    when the next step asks for it. This takes half of the time of a step on patches of 112 x 112 x 80 voxels (measured
    on 2 cores). With this setting the process keeps its largest size, a tenth more on those patches. Processes that
    this process forks, such as the workers of a data loader, inherit the setting.

    Returns:
        Whether it was set: only glibc (Linux) has these settings.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # No block gets a mapping of its own, and the heap keeps whatever is freed at its end (-1 is the largest size).
    return mallopt(_MMAP_MAX, 0) == 1 and mallopt(_TRIM_THRESHOLD, -1) == 1
