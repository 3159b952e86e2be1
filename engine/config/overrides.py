"""Config values of the command line, `dotted.key=value`."""

import json
from collections.abc import Sequence
from typing import Any

from data.shown import shown
from models.options import Word

from .errors import ConfigError
from .files import merge
from .keys import field_of, fields, is_key, parts_of, takes_text
from .names import COMMAND_LINE, with_current_names
from .sections import is_mapping, is_nullable, is_section, is_text
from .yaml_values import YamlError, read_yaml

_NULLS = ("", "null", "~")


def read_overrides(overrides: Sequence[str], *, is_silent: bool = False) -> dict[str, Any]:
    """Return overrides as nested values with current names; the last value of a key counts.

    Args:
        overrides: `dotted.key=value`, the value in YAML; a text is taken as it is.
        is_silent: see `models.options.current_names`.

    Raises:
        ConfigError: if anything is not valid; the message lists every error.
    """
    values: dict[str, Any] = {}
    problems = [problem for override in overrides for problem in _apply(values, override)]
    if problems:
        raise ConfigError("\n".join([COMMAND_LINE, *problems]))
    return with_current_names(values, COMMAND_LINE, is_silent=is_silent)


def as_override(key: str, value: Any) -> str:
    """Return the override that sets an option to a plain value."""
    return f"{key}={value if isinstance(value, str) else json.dumps(value, separators=(',', ':'))}"


def _apply(values: dict[str, Any], override: str) -> list[str]:
    """Set one `dotted.key=value` in place; return its errors."""
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        return [f"  - {shown(override)}: expected key=value, as in train.epochs=1"]
    if not is_key(dotted):
        values[dotted] = text  # the check of the config reports it, with a guess
        return []
    *parents, key = parts_of(dotted)
    for index, parent in enumerate(parents, 1):
        field = field_of(".".join(parents[:index]))
        if not (is_section(field) or is_mapping(field)):
            return [f"  - {dotted}: {parent!r} is not a section"]
        if values.get(parent) is None:
            values[parent] = {}
        values = values[parent]
        if not isinstance(values, dict):
            return [f"  - {dotted}: {parent!r} is not a section"]
    try:
        value = _value_of(dotted, text)
    except YamlError as error:
        return [f"  - {dotted}: {shown(text)} is not a valid YAML value: {error}"]
    words = [mark for mark in getattr(field_of(dotted), "metadata", ()) if isinstance(mark, Word)]
    if words and isinstance(value, str):  # now, because a later override may set a key of the section
        value = words[0].section(dotted, value, fields())
    values[key] = merge({key: values.get(key)}, {key: value})[key]
    return []


def _value_of(dotted: str, text: str) -> Any:
    """Return the value of an override: the text itself for an option that is a text, otherwise YAML."""
    field = field_of(dotted)
    if field is None or not is_text(field):
        return read_yaml(text, takes_text, dotted)
    return None if is_nullable(field) and text in _NULLS else text
