"""Habits that many modules share: whole files or none, the name of a case, the first line of an error."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

EXTENSIONS = (".nii.gz", ".nii")
"""Endings of NIfTI files, in any case of letters."""


def case_name(path: str | os.PathLike[str]) -> str:
    """Name a case by its file or folder: the last part of the path, without ``.nii`` or ``.nii.gz``.

    >>> case_name("scans/sub.niigata.nii.gz")
    'sub.niigata'
    """
    name = Path(path).name
    for extension in EXTENSIONS:
        if name.lower().endswith(extension):
            return name[: -len(extension)]
    return name


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file whole or not at all.

    The block writes to the temporary path that it is given, which lies beside ``path`` and ends as it does. When the
    block ends, the temporary file replaces ``path`` in one step; when it raises, the temporary file is removed.

    Args:
        path: the file to write. Its folder must exist.

    Yields:
        The temporary path.
    """
    path = Path(path)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def first_line(error: BaseException, length: int = 100) -> str:
    """Return the first line of an error's message, cut to ``length`` characters; its type if it has no message."""
    lines = str(error).splitlines()
    return (lines[0] if lines else "")[:length] or type(error).__name__
