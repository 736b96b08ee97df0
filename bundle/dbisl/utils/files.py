"""Small helpers for files: atomic writes, the name of a case, and the first line of an error."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

EXTENSIONS = (".nii.gz", ".nii")
"""Extensions of NIfTI files. Upper and lower case count as the same."""


def case_name(path: str | os.PathLike[str]) -> str:
    """Return the name of a case: the last part of a path, without ``.nii`` or ``.nii.gz``.

    Args:
        path: the file or the folder of the scan, or the name of the case itself.

    Example:
        >>> case_name("scans/sub.niigata.nii.gz")
        'sub.niigata'
        >>> case_name("archive/patient_7/series_2")
        'series_2'
    """
    name = Path(path).name
    for extension in EXTENSIONS:
        if name.lower().endswith(extension):
            return name[: -len(extension)]
    return name


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a whole file or nothing.

    The block writes to a temporary path beside ``path``, with the same extension. When the block ends, the temporary
    file replaces ``path`` in one step. If the block raises, ``path`` stays as it was and the temporary file is removed.

    Args:
        path: the file to write. Its folder must exist.

    Yields:
        The temporary path to write to.
    """
    path = Path(path)
    temporary = path.with_name(f".{os.getpid()}.{threading.get_ident()}.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def first_line(error: BaseException, length: int = 100) -> str:
    """Return the first line of an error's message that is not blank, or the name of its type if the message is empty.

    Args:
        error: the error.
        length: the largest number of characters. A longer line is cut.
    """
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else "")[:length] or type(error).__name__
