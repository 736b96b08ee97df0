"""Format JSON configs so that short objects and lists take one line.

    python scripts/format_json.py

rewrites the JSON files of ``bundle/configs``. With ``--check`` it writes nothing, and ends with an error if a file
would change.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fire

from dbisl.utils import atomic_path

CONFIGS = Path(__file__).resolve().parents[1] / "bundle" / "configs"
INDENT = 4
WIDTH = 100
"""Characters of the longest line that may hold a whole object or list."""
MOST_ENTRIES = 4
"""Entries, with ``_target_``, of the largest component that may take one line."""


def format_json(value: Any) -> str:
    """Return a value as JSON text.

    An object or a list takes one line if the line, with its indentation, key and a comma, has at most ``WIDTH``
    characters, and if no object in it holds further objects. The outermost value, and every object with ``_target_``
    and more than ``MOST_ENTRIES`` entries, take one line per entry. A blank line stands before each outermost key such
    as ``_paths_``, which opens a group.

    Args:
        value: what ``json.loads`` returns. Objects keep the order of their keys.

    Returns:
        The text, which ends with a line break.

    Example:
        >>> print(format_json({"patch_size": [40, 56], "network": {"_target_": "VNet", "features": 16}}), end="")
        {
            "patch_size": [40, 56],
            "network": {"_target_": "VNet", "features": 16}
        }
    """
    return _format(value, level=0, column=0, outermost=True) + "\n"


def _format(value: Any, *, level: int, column: int, outermost: bool = False) -> str:
    """Return the text of a value that begins at a column of a line; its entries are one level deeper."""
    line = json.dumps(value, ensure_ascii=False)
    entries = _entries(value)
    fits = column + len(line) + len(",") <= WIDTH
    if not entries or (fits and not outermost and not _must_open(value)):
        return line
    lines: list[str] = []
    for key, entry in entries:
        start = " " * INDENT * (level + 1) + ("" if key is None else f"{json.dumps(key, ensure_ascii=False)}: ")
        opens_group = outermost and lines and key is not None and key.startswith("_") and key.endswith("_")
        lines.append(("\n" if opens_group else "") + start + _format(entry, level=level + 1, column=len(start)))
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return f"{opening}\n" + ",\n".join(lines) + f"\n{' ' * INDENT * level}{closing}"


def _entries(value: Any) -> list[tuple[str | None, Any]]:
    """Return the entries of an object with their keys, of a list without keys; no entries of anything else."""
    if isinstance(value, dict):
        return list(value.items())
    return [(None, entry) for entry in value] if isinstance(value, list) else []


def _must_open(value: Any) -> bool:
    """Return whether a value takes several lines, however short it is."""
    large_component = isinstance(value, dict) and "_target_" in value and len(value) > MOST_ENTRIES
    entries = [entry for _, entry in _entries(value)]
    return large_component or any(_depth(entry) > 1 or _must_open(entry) for entry in entries)


def _depth(value: Any) -> int:
    """Return how many objects lie inside each other."""
    return isinstance(value, dict) + max((_depth(entry) for _, entry in _entries(value)), default=0)


def format_folder(folder: str = str(CONFIGS), check: bool = False) -> None:
    """Format the JSON files of a folder.

    Args:
        folder: the folder; its subfolders are formatted too.
        check: whether to write nothing, and end with an error if a file would change.

    Raises:
        SystemExit: with ``check``, when a file would change; the message has one sentence per file.
    """
    texts = {path: path.read_text(encoding="utf-8") for path in sorted(Path(folder).rglob("*.json"))}
    formatted = {path: format_json(json.loads(text)) for path, text in texts.items()}
    changed = [path for path, text in texts.items() if formatted[path] != text]
    if check and changed:
        raise SystemExit("\n".join(f"{path} is not formatted: run `make format`." for path in changed))
    for path in changed:
        with atomic_path(path) as temporary:
            temporary.write_text(formatted[path], encoding="utf-8")
        print(f"{path} is formatted.")


if __name__ == "__main__":
    fire.Fire(format_folder)
