"""Helpers for all other sub-packages: errors, files, devices, several processes, and overrides on the command line."""

from dbisl.utils.device import check_device
from dbisl.utils.distributed import (
    checks_passed,
    rank_device,
    share_of_rank,
    start_processes,
    sum_over_ranks,
    synchronise_batch_norm,
)
from dbisl.utils.errors import InputError, input_errors_as, raise_if_any
from dbisl.utils.files import atomic_path, case_name, first_line, read_json_object
from dbisl.utils.host_memory import keep_freed_memory
from dbisl.utils.overrides import check_overrides
from dbisl.utils.recipe import check_recipe, describe_recipe, read_recipe

__all__ = [
    "InputError",
    "atomic_path",
    "case_name",
    "check_device",
    "check_overrides",
    "check_recipe",
    "checks_passed",
    "describe_recipe",
    "first_line",
    "input_errors_as",
    "keep_freed_memory",
    "raise_if_any",
    "rank_device",
    "read_json_object",
    "read_recipe",
    "share_of_rank",
    "start_processes",
    "sum_over_ranks",
    "synchronise_batch_norm",
]
