"""What every floor may use: errors, files, distributed processes, the command line's overrides."""

from dbisl.utils.device import check_device
from dbisl.utils.distributed import (
    checks_passed,
    rank_device,
    share_of_rank,
    start,
    sum_over_ranks,
    synchronise_batch_norm,
)
from dbisl.utils.errors import InputError
from dbisl.utils.files import case_name
from dbisl.utils.host_memory import keep_freed_memory
from dbisl.utils.overrides import check_overrides

__all__ = [
    "InputError",
    "case_name",
    "check_device",
    "check_overrides",
    "checks_passed",
    "keep_freed_memory",
    "rank_device",
    "share_of_rank",
    "start",
    "sum_over_ranks",
    "synchronise_batch_norm",
]
