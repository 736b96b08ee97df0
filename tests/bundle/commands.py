"""How the tests call the bundle's commands."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

Run = Callable[..., subprocess.CompletedProcess[str]]
"""``run(run_id, [config files], key=value, ...)``: the command line, in the bundle's folder."""

TINY = {"epochs": 2, "iterations_per_epoch": 2, "network_def#features": 4, "val_interval": 1, "log_interval": 1}
"""Overrides of a training that takes seconds."""
