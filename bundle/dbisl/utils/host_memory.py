"""How the process keeps its memory."""

from __future__ import annotations

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Names of the settings in glibc's ``malloc.h``."""


def keep_freed_memory() -> bool:
    """Keep the memory of freed tensors for the next ones, as PyTorch itself does on a GPU.

    By default glibc hands every freed block of 32 MiB and more back to the system, which clears each page anew when
    the next step asks for it: half of the time of a step on patches of 112 x 112 x 80 (measured on 2 cores). The
    process then stays as large as it was at its largest, a tenth more on those patches. Processes that are started
    from here, such as those of a loader, inherit it.

    Returns:
        Whether it was set: only glibc (Linux) knows these settings.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # No block by a mapping of its own, and no limit (-1 is the largest size) to what is kept at the heap's end.
    return mallopt(_MMAP_MAX, 0) == 1 and mallopt(_TRIM_THRESHOLD, -1) == 1
