"""Freed memory stays with the process: using it again causes no page faults."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
from dbisl.utils import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
for _ in range(12):  # the first rounds grow the process to the size that it needs
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(64 * 2**20, dtype=torch.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_freed_memory_is_kept() -> None:
    faults = {}
    for mode in ("keep", "default"):  # in separate processes, because the setting cannot be undone
        done = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True)
        faults[mode] = int(done.stdout)
    assert faults["keep"] < faults["default"] / 10
