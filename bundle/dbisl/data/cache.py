"""The two streams of a semi-supervised training: labeled and unlabeled scans, each for ever, side by side."""

from __future__ import annotations

import os
from collections.abc import Mapping

from monai.data.utils import pickle_hashing


def hash_case(case: Mapping[str, str]) -> bytes:
    """Key of a case in MONAI's ``PersistentDataset``: its paths, and the size and time of each file.

    By the paths alone a label that was corrected would go on being read from the cache.
    """
    files = {key: (str(path), os.stat(path)) for key, path in case.items()}
    return pickle_hashing({key: (path, stat.st_size, stat.st_mtime_ns) for key, (path, stat) in files.items()})
