"""Write the table of the configs' keys.

    python scripts/document_keys.py

writes ``bundle/docs/keys.md``: the keys of ``bundle/dbisl/utils/keys.py``, with the defaults of the configs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fire

from dbisl.utils import atomic_path
from dbisl.utils.keys import KEYS

BUNDLE = Path(__file__).resolve().parents[1] / "bundle"
CONFIGS = ("train.json", "evaluate.json", "inference.json", "maps.json")
RECIPE = "_recipe_"
"""Heading after which a config uses its keys."""

HEAD = """# Keys of the configs

Set a key on the command line (`--epochs 30`) or in an override file. A key that does not exist is an error that names
the nearest one. On the command line, write `True`, `False` and `None` for `true`, `false` and `null`, and put a list in
quotes (`--spacing "[1,1,2]"`). A default that begins with `$` is an expression, in which `@key` is another key's value.

This page is made by `python scripts/document_keys.py`.
"""


def headings(config: dict[str, Any]) -> list[str]:
    """Return the keys of a config that open a group, such as ``_paths_``."""
    return [key for key in config if key.startswith("_") and key.endswith("_")]


def keys_at_head(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the groups of keys before the recipe, by heading; a config without a recipe is one group."""
    groups: dict[str, dict[str, Any]] = {}
    group: dict[str, Any] = {}
    for key, value in config.items():
        if key == RECIPE:
            break
        if key in headings(config):
            group = groups.setdefault(key, {})
        elif groups:
            group[key] = value
    return groups


def table() -> str:
    """Return the page as Markdown.

    Raises:
        KeyError: when a key at the head of a config is not in the list of keys.
    """
    known = {key.name: key for key in KEYS}
    parts = [HEAD]
    for name in CONFIGS:
        config = json.loads((BUNDLE / "configs" / name).read_text(encoding="utf-8"))
        parts.append(f"## {name}\n")
        for heading, group in keys_at_head(config).items():
            parts.append(f"{config[heading]}\n")
            parts.append("| key | default | unit | meaning |\n| --- | --- | --- | --- |")
            for key, default in group.items():
                value = json.dumps(default, ensure_ascii=False).replace("|", "\\|")
                meaning = known[key].meaning
                if known[key].follows_from:
                    meaning += f" It follows from {known[key].follows_from} and cannot be set."
                parts.append(f"| `{key}` | `{value}` | {known[key].unit} | {meaning} |")
            parts.append("")
    return "\n".join(parts)


def document_keys(path: str = str(BUNDLE / "docs" / "keys.md")) -> None:
    """Write the page.

    Args:
        path: where to write it.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(table(), encoding="utf-8")


if __name__ == "__main__":
    fire.Fire(document_keys)
