"""Refuse misspelled overrides, which MONAI ignores without a message.

``python -m monai.bundle run training --epoch 3`` adds a key ``epoch`` to the config, which nothing reads, and trains
as if the option were absent. A misspelled key in an override file has the same effect. The config itself calls
:func:`check_overrides`, which refuses both.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import inspect
import io
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.bundle.config_item import ConfigExpression
from monai.bundle.config_parser import ConfigParser
from monai.bundle.properties import InferProperties, TrainProperties
from monai.bundle.reference_resolver import ReferenceResolver
from monai.bundle.scripts import create_workflow, run, update_kwargs
from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS, ID_SEP_KEY, MACRO_KEY, MERGE_KEY, merge_kv
from monai.bundle.workflows import ConfigWorkflow
from monai.utils.enums import BundlePropertyConfig
from monai.utils.misc import ensure_tuple

from dbisl.utils.errors import InputError
from dbisl.utils.keys import KEYS

LOOKED_UP = {"imports", "initialize", "run", "finalize", "training", "evaluating", "inference"}
"""Top-level keys that MONAI's tools look up by name, even if the config does not refer to them."""


@dataclass(frozen=True)
class _NewKey:
    """Key of an override that the config lacks.

    Attributes:
        id: the key, with its parts separated by ``::``.
        file: the override file with the key; None for the command line.
        parent: the deepest part of ``id`` that exists; "" for the top level.
        part: the part that ``parent`` lacks.
        siblings: the keys that ``parent`` has.
        addable: whether only the last part is new, so that MONAI adds it without a message.
    """

    id: str
    file: str | None
    parent: str
    part: str
    siblings: list[str]
    addable: bool


def check_overrides(argv: Sequence[str] | None = None) -> None:
    """Refuse keys on the command line and in override files that the config lacks and that nothing reads.

    A new key is accepted if something reads it: a reference, macro or expression of the merged config, a constructor
    (the key's parent has a ``_target_``), or a tool of MONAI that looks it up by name. In an override file, a new key
    is also accepted if another config of the same folder has it, since one override file may serve several configs.

    A key that follows from others (``iterations``) is refused too: it would change only a part of what it means.

    Does nothing unless the process was started as ``python -m monai.bundle run ...``.

    Args:
        argv: the arguments of the process; None for ``sys.argv``.

    Raises:
        InputError: one sentence per refused key, one per line, with similar keys that exist.
    """
    argv = sys.argv if argv is None else argv
    if Path(argv[0]).parts[-3:] != ("monai", "bundle", "__main__.py") or list(argv[1:2]) != ["run"]:
        return
    arguments = _run_arguments(argv[2:])
    files = [str(file) for file in ensure_tuple(arguments.get("config_file", ()))]
    if not files:
        return

    # Apply the overrides in MONAI's order: later ones may refer to keys that earlier ones added.
    parser = ConfigParser(config=ConfigParser.load_config_file(files[0]))
    new_keys, derived = [], []
    for file in files[1:]:
        for key, value in ConfigParser.load_config_file(file).items():
            derived += _derived_key_message(key, file)
            new_keys += _apply_override(parser, key, value, file)
    for key, value in arguments.items():
        if key not in _run_parameters():
            derived += _derived_key_message(key, None)
            new_keys += _apply_override(parser, key, value, None)

    read = _read_ids(parser) | _looked_up_ids(arguments)
    for_files = read | _property_ids(parser) | _neighbour_ids(files[0])
    unread = [key for key in new_keys if not key.addable or key.id not in (read if key.file is None else for_files)]
    problems = derived + [_unread_key_message(key, files[0], parser) for key in unread]
    problems += _misplaced_value_messages(arguments, parser) + _constant_messages(arguments)
    if problems:
        raise InputError("\n".join(problems))


def _derived_key_message(key: str, file: str | None) -> list[str]:
    """Return the sentence for a key that follows from others; an empty list for any other key."""
    follows_from = {entry.name: entry.follows_from for entry in KEYS}.get(key.removeprefix(MERGE_KEY), "")
    shown = f"--{key}" if file is None else f"{file}: {key}"
    return [f"{shown} follows from {follows_from}: expected these instead."] if follows_from else []


def _run_arguments(command: Sequence[str]) -> dict[str, Any]:
    """Return the arguments of ``monai.bundle.run`` by name, parsed by Fire as MONAI parses its command line."""
    import fire  # MONAI needs it only for its command line

    given: dict[str, Any] = {}

    @functools.wraps(run)
    def record(*args: Any, **kwargs: Any) -> None:
        given.update(zip(inspect.signature(run).parameters, args, strict=False), **kwargs)

    command = list(command)
    if "--" in command:  # Fire's own flags follow the last one
        command = command[: len(command) - 1 - command[::-1].index("--")]
    with contextlib.suppress(fire.core.FireExit), contextlib.redirect_stderr(io.StringIO()):
        fire.Fire(record, command=command)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI gives the same warnings when it merges the arguments itself
        arguments: dict[str, Any] = update_kwargs(args=given.pop("args_file", None), **given)
    return arguments


@functools.cache
def _run_parameters() -> set[str]:
    """Return the options of the command line that are not keys of the config."""
    signatures = (inspect.signature(function) for function in (run, create_workflow, ConfigWorkflow))
    return {name for signature in signatures for name in signature.parameters}


def _apply_override(parser: ConfigParser, key: str, value: Any, file: str | None) -> list[_NewKey]:
    """Apply one override to the config. Return its key if the config lacks it, else an empty list."""
    id = ReferenceResolver.normalize_id(key.removeprefix(MERGE_KEY))
    if ReferenceResolver.split_id(id)[0] == ConfigParser.meta_key:
        return []
    new_keys = _new_keys(parser.get(), id, file)
    if all(new.addable for new in new_keys):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            merge_kv(parser, key, value)
    return new_keys


def _new_keys(node: Any, id: str, file: str | None) -> list[_NewKey]:
    """Return the key if the config ``node`` lacks it, else an empty list."""
    parts = ReferenceResolver.split_id(id)
    for depth, part in enumerate(parts):
        if isinstance(node, list):
            siblings = [str(index) for index in range(-len(node), len(node))]
        else:
            siblings = [str(name) for name in node] if isinstance(node, Mapping) else []
        if part not in siblings:
            last = depth == len(parts) - 1
            if last and isinstance(node, Mapping) and "_target_" in node:
                return []  # an argument of a constructor, which refuses arguments that it does not know
            return [_NewKey(id, file, "#".join(parts[:depth]), part, siblings, last and isinstance(node, Mapping))]
        node = node[int(part)] if isinstance(node, list) else node[part]
    return []


def _read_ids(parser: ConfigParser) -> set[str]:
    """Return the ids that a reference, macro or expression of the config reads, and the ids above them."""
    ids: set[str] = set()
    for id, text in _strings(parser.get()):
        text = ConfigParser.resolve_relative_ids(id, text)
        if text.startswith(MACRO_KEY):
            path, target = ConfigParser.split_path_id(text[len(MACRO_KEY) :])
            ids.update(() if path else (target,))
    parser.resolve_macro_and_relative_ids()  # a macro may bring in references from another file
    for id, text in _strings(parser.get()):
        ids.update(ReferenceResolver.match_refs_pattern(text))
        if ConfigExpression.is_import_statement(text):
            ids.add(id)  # MONAI executes an import anywhere in the config
    paths = [ReferenceResolver.split_id(id) for id in ids]
    return {ID_SEP_KEY.join(path[: depth + 1]) for path in paths for depth in range(len(path))}


def _strings(node: Any, id: str = "") -> Iterator[tuple[str, str]]:
    """Yield the id and the text of each string in the config."""
    if isinstance(node, str):
        yield id, node
    elif isinstance(node, (dict, list)):
        for _, sub_id, child in ReferenceResolver.iter_subconfigs(id=id, config=node):
            yield from _strings(child, sub_id)


def _looked_up_ids(arguments: Mapping[str, Any]) -> set[str]:
    """Return the top-level keys that ``run`` and its experiment tracking look up by name."""
    ids = LOOKED_UP | {str(arguments[name]) for name in ("run_id", "init_id", "final_id") if name in arguments}
    tracking = arguments.get("tracking")
    if tracking is None:
        return ids
    built_in = isinstance(tracking, str) and tracking in DEFAULT_EXP_MGMT_SETTINGS
    settings: Any = DEFAULT_EXP_MGMT_SETTINGS[tracking] if built_in else ConfigParser.load_config_files(tracking)
    return ids | (set(settings["configs"]) - set(settings["handlers_id"]))


def _property_ids(parser: ConfigParser) -> set[str]:
    """Return the ids by which other tools set this kind of bundle. Override files may have them."""
    properties = TrainProperties if "train" in parser else InferProperties
    return {ReferenceResolver.normalize_id(str(entry[BundlePropertyConfig.ID])) for entry in properties.values()}


def _neighbour_ids(config_file: str) -> set[str]:
    """Return the top-level keys of all configs in the folder: a data set's file serves training and inference."""
    return {key for path in _configs_beside(config_file) for key in ConfigParser.load_config_file(path)}


def _configs_beside(config_file: str) -> list[Path]:
    """Return the JSON configs in the folder of a config."""
    return sorted(Path(config_file).parent.glob("*.json"))


def _is_overlay_with(path: Path, id: str, parser: ConfigParser) -> bool:
    """Return whether a config has a key and can be given after the config that is being run."""
    config = ConfigParser.load_config_file(path)
    paths = [ReferenceResolver.split_id(ReferenceResolver.normalize_id(key)) for key in config]
    return id in config and "bundle_root" not in config and all(parts[0] in parser for parts in paths if len(parts) > 1)


def _unread_key_message(key: _NewKey, config_file: str, parser: ConfigParser) -> str:
    """Return the sentence that refuses a key and names similar ones: by spelling, by last part, or by parent."""
    id = _display_id(key.id)
    given = f"--{id}" if key.file is None else f"{key.file}: {id}"
    overlays = [path.name for path in _configs_beside(config_file) if _is_overlay_with(path, key.id, parser)]
    if overlays and key.file is None:
        return f"{given} overrides nothing: it is a key of {overlays[0]}; expected that file in --config_file too."
    prefix = f"{key.parent}#" if key.parent else ""
    similar = [prefix + name for name in difflib.get_close_matches(key.part, key.siblings, n=3)]
    elsewhere = (other for other in _display_ids(parser.get()) if other.endswith(f"#{key.part}") and other != id)
    similar = similar or list(elsewhere)[:3]
    similar = similar or [prefix + name for name in key.siblings if prefix][:12]
    hint = f", such as {', '.join(similar)}" if similar else ""
    place = f"under {key.parent}" if key.parent else "at the top level"
    return f"{given} overrides nothing: {config_file} has no {key.part!r} {place}; expected an existing key{hint}."


def _display_ids(node: Any, id: str = "") -> Iterator[str]:
    """Yield all ids of the config in the form for messages."""
    if isinstance(node, (dict, list)):
        for _, sub_id, child in ReferenceResolver.iter_subconfigs(id=id, config=node):
            yield _display_id(sub_id)
            yield from _display_ids(child, sub_id)


def _display_id(id: str) -> str:
    """Return an id in the form for messages: with ``#``, which is quicker to type than ``::``. MONAI reads both."""
    return id.replace(ID_SEP_KEY, "#")


def _constant_messages(arguments: Mapping[str, Any]) -> list[str]:
    """Return a message for ``false`` and its like: Fire reads only Python's constants, and ``"false"`` is true."""
    constants = {"true": "True", "false": "False", "null": "None", "none": "None"}
    return [
        f"--{key} is the text {value!r}: expected Python's {constants[value.lower()]}."
        for key, value in arguments.items()
        if isinstance(value, str) and value.lower() in constants
    ]


def _misplaced_value_messages(arguments: Mapping[str, Any], parser: ConfigParser) -> list[str]:
    """Return a message for the rest of an unquoted ``--patch_size [96, 96, 64]``.

    Fire takes its parts for ``init_id`` and ``final_id``, which MONAI ignores if they name no key of the config.
    """
    return [
        f"{name} is {arguments[name]!r}, which is no key of the config: expected the name of one; a value with spaces "
        'needs quotes, as in --patch_size "[96, 96, 64]".'
        for name in ("init_id", "final_id")
        if name in arguments and str(arguments[name]) not in parser
    ]
