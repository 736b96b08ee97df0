"""The table of the configs' keys."""

from __future__ import annotations

import json
from pathlib import Path

from dbisl.utils.keys import KEYS
from scripts.document_keys import CONFIGS, headings, keys_at_head, table


def heads(root: Path) -> set[str]:
    """The keys that stand before the recipe in a config."""
    configs = [json.loads((root / "bundle" / "configs" / name).read_text()) for name in CONFIGS]
    return {key for config in configs for group in keys_at_head(config).values() for key in group}


def test_every_key_at_the_head_of_a_config_is_described_once(root: Path) -> None:
    names = [key.name for key in KEYS]
    assert len(names) == len(set(names))
    assert set(names) == heads(root)
    assert all(key.meaning.endswith(".") for key in KEYS)


def test_the_document_is_the_table(root: Path) -> None:
    assert (root / "bundle" / "docs" / "keys.md").read_text() == table(), "run python scripts/document_keys.py"


def test_only_the_recipe_follows_the_keys(root: Path) -> None:
    """Every top-level number or switch stands at the head of a config, where a user looks for it."""
    for name in CONFIGS:
        config = json.loads((root / "bundle" / "configs" / name).read_text())
        head = {key for group in keys_at_head(config).values() for key in group}
        recipe = {key: value for key, value in config.items() if key not in head and key not in headings(config)}
        own = {key for key, value in recipe.items() if isinstance(value, (bool, int, float)) and "#" not in key}
        assert own <= heads(root), name
