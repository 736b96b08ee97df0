"""Caches for prepared scans, in memory or on disk."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence

import ignite.distributed as idist
from monai.data import CacheDataset, Dataset, PersistentDataset
from monai.data.utils import pickle_hashing


def cached_dataset(
    data: Sequence[Mapping[str, str]],
    transform: Sequence[Callable] | Callable,
    cache_rate: float = 1.0,
    cache_dir: str | os.PathLike[str] | None = None,
    num_workers: int = 2,
) -> Dataset:
    """Return a dataset that prepares each scan once, and keeps it in memory or on disk.

    The cache holds a case as it is after the transforms that come before the first random one. The random transforms
    run each time a case is read.

    - In memory (MONAI's ``CacheDataset``), the scans are prepared when the dataset is created, and the cache ends with
      the process. In a terminal, a bar shows how far that is.
    - On disk (MONAI's ``PersistentDataset``), a scan is prepared when it is first read, and later runs use the same
      files. It is prepared again after one of its files has changed (see :func:`hash_case`), or after a transform
      before the first random one has changed. Old files stay in ``cache_dir`` until they are deleted by hand. What is
      read from these files are plain tensors, without MONAI's metadata.

    Args:
        data: the cases, each with the paths of its files, such as ``{"image": path, "label": path}``.
        transform: the transforms of a case, in order.
        cache_rate: part of the cases that is kept in memory, from 0 to 1. The others are prepared at each reading. On
            disk every case is kept.
        cache_dir: the folder of the cache on disk, which is created if missing; None keeps the scans in memory.
        num_workers: threads that prepare the scans in memory.
    """
    if cache_dir is None:
        return CacheDataset(data, transform, cache_rate=cache_rate, num_workers=num_workers, progress=_shows_progress())
    return PersistentDataset(
        data, transform, cache_dir=os.fspath(cache_dir), hash_func=hash_case, hash_transform=pickle_hashing
    )


def _shows_progress() -> bool:
    """Whether a bar shows how far the scans are prepared: only in a terminal, and of one process."""
    return sys.stderr.isatty() and idist.get_rank() == 0


def hash_case(case: Mapping[str, str]) -> bytes:
    """Return the key of a case for MONAI's ``PersistentDataset``: its paths, and the size and time of each file.

    With the paths alone, a corrected label would still be read from the cache.

    Args:
        case: paths of existing files by key, such as ``{"image": path, "label": path}``.
    """
    files = {key: (str(path), os.stat(path)) for key, path in case.items()}
    return pickle_hashing({key: (path, stat.st_size, stat.st_mtime_ns) for key, (path, stat) in files.items()})
