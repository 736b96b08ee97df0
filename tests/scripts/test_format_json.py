"""The form of the JSON configs: what is short takes one line, and nothing but the form changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scripts.format_json import WIDTH, format_folder, format_json

CONFIG: dict[str, Any] = {
    "zeta": None,
    "alpha": [1, 2.5, 1e-05, True, "×\n"],
    "empty": {"list": [], "object": {}},
    "long": [f"entry {index}" for index in range(20)],
    "step": {"_target_": "Step", "keys": ["image", "label"], "options": {"mode": "nearest"}},
    "large": {"_target_": "Step", "a": 1, "b": 2, "c": 3, "d": 4},
    "steps": [{"_target_": "One"}, {"_target_": "Two", "options": {"deep": {"deeper": [[]]}}}],
}


def test_value_and_order_of_keys_stay() -> None:
    formatted = format_json(CONFIG)
    assert json.loads(formatted) == CONFIG
    assert json.dumps(json.loads(formatted)) == json.dumps(CONFIG)
    assert format_json(json.loads(formatted)) == formatted
    assert formatted.endswith("}\n") and "×" in formatted


def test_form() -> None:
    assert format_json(CONFIG).splitlines() == [
        "{",
        '    "zeta": null,',
        '    "alpha": [1, 2.5, 1e-05, true, "×\\n"],',
        '    "empty": {"list": [], "object": {}},',
        '    "long": [',
        *(f'        "entry {index}",' for index in range(19)),
        '        "entry 19"',
        "    ],",
        '    "step": {"_target_": "Step", "keys": ["image", "label"], "options": {"mode": "nearest"}},',
        '    "large": {',
        '        "_target_": "Step",',
        '        "a": 1,',
        '        "b": 2,',
        '        "c": 3,',
        '        "d": 4',
        "    },",
        '    "steps": [',
        '        {"_target_": "One"},',
        "        {",
        '            "_target_": "Two",',
        '            "options": {"deep": {"deeper": [[]]}}',
        "        }",
        "    ]",
        "}",
    ]


@pytest.mark.parametrize("value", [{}, [], "text", 1.5, None])
def test_values_without_entries_take_one_line(value: Any) -> None:
    assert format_json(value) == json.dumps(value) + "\n"


def test_outermost_value_is_opened() -> None:
    assert format_json({"a": 1}) == '{\n    "a": 1\n}\n'
    assert format_json([1, 2]) == "[\n    1,\n    2\n]\n"


def test_objects_that_hold_a_large_component_are_opened() -> None:
    nested = {"handler": {"component": CONFIG["large"]}}
    assert '    "handler": {\n        "component": {\n            "_target_": "Step",\n' in format_json(nested)


def test_groups_are_set_apart_by_a_blank_line() -> None:
    config = {"_paths_": "Where.", "a": 1, "_task_": "What.", "b": {"_task_": "", "c": [{}, {"d": {"e": {}}}]}}
    formatted = format_json(config)
    assert json.loads(formatted) == config and format_json(json.loads(formatted)) == formatted
    assert formatted.startswith('{\n    "_paths_": "Where.",\n    "a": 1,\n\n    "_task_": "What.",\n    "b": {\n')
    assert formatted.count("\n\n") == 1


def test_a_line_has_room_for_its_comma() -> None:
    longest = WIDTH - len('    "key": [""],')
    assert '"key": ["' in format_json({"key": ["x" * longest]})
    assert '"key": [\n' in format_json({"key": ["x" * (longest + 1)]})
    for line in format_json({"deep": [{"key": ["x" * length for length in range(30)]}]}).splitlines():
        assert len(line) <= WIDTH


def test_folder_is_checked_and_formatted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "sub" / "config.json"
    config.parent.mkdir()
    config.write_text(json.dumps(CONFIG, indent=4))
    before = config.read_bytes()
    with pytest.raises(SystemExit, match=r"config\.json is not formatted: run `make format`"):
        format_folder(str(tmp_path), check=True)
    assert config.read_bytes() == before
    format_folder(str(tmp_path))
    assert config.read_text(encoding="utf-8") == format_json(CONFIG)
    assert "config.json is formatted" in capsys.readouterr().out
    format_folder(str(tmp_path), check=True)
    format_folder(str(tmp_path))
    assert capsys.readouterr().out == ""
