"""Small helpers for files: the name of a case, atomic writes, JSON, and the first line of an error."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dbisl.utils.errors import InputError

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


def read_json_object(path: str | os.PathLike[str], content: str) -> dict[str, Any]:
    """Return the JSON object in a file.

    Args:
        path: the file, in UTF-8 with or without a byte order mark.
        content: what the file should hold, for the error: ``lists of cases``.

    Raises:
        InputError: if the file does not exist, or does not hold a JSON object.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist: expected a JSON file.")
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise InputError(f"{path} is not a JSON file ({error}): expected {content}.") from None
    if not isinstance(found, dict):
        raise InputError(f"{path} holds a {type(found).__name__}: expected a JSON object with {content}.")
    return found


def first_line(error: BaseException, length: int = 100) -> str:
    """Return the first line of an error's message that is not blank, or the name of its type if the message is empty.

    Args:
        error: the error.
        length: the largest number of characters. A longer line is cut.
    """
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else "")[:length] or type(error).__name__
