"""Load YAML files and command-line overrides into a checked `RunConfig`; all errors are reported at once."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from .contradictions import contradictions
from .errors import ConfigError, describe_problem, named
from .files import find_config, merge, read_with_bases
from .names import with_current_names
from .options import RunConfig
from .overrides import read_overrides
from .yaml_values import write_yaml

_MAX_LINES = 20  # of an error


def load_config(source: str | os.PathLike | Mapping[str, Any] | RunConfig, overrides: Sequence[str] = ()) -> RunConfig:
    """Load a config file with its `base` files, apply overrides, and check the result.

    Args:
        source: config file, bare name of a file in `configs/`, mapping of options (without `base`), or config.
        overrides: `dotted.key=value`, the value in YAML; a text is taken as it is.

    Returns:
        The config.

    Raises:
        ConfigError: if anything is not valid; the message lists every error.
    """
    if isinstance(source, RunConfig):
        source = source.model_dump(mode="json")
    if isinstance(source, Mapping):
        name = "the mapping"
        values = with_current_names(source, name)
    else:
        file = find_config(source)
        name, values = named(file), read_with_bases(file)
    config = with_overrides(values, overrides, name)
    if problems := [f"  - {problem}" for problem in contradictions(config)]:
        raise ConfigError("\n".join([f"{name} is not a valid config:", *problems]))
    return config


def with_overrides(values: dict[str, Any], overrides: Sequence[str], name: str) -> RunConfig:
    """Merge overrides into plain values with current names and check the result; the error contains `name`.

    Raises:
        ConfigError: if anything is not valid; the message lists every error.
    """
    return check_config(merge(values, read_overrides(overrides)), name)


def check_config(values: dict[str, Any], name: str) -> RunConfig:
    """Build a `RunConfig` from plain values; the error contains `name`.

    Raises:
        ConfigError: if anything is not valid; the message lists every error.
    """
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        problems = error.errors()
        lines = [f"  - {describe_problem(problem)}" for problem in problems[:_MAX_LINES]]
        more = [f"  - and {len(problems) - _MAX_LINES:,} more"] if len(problems) > _MAX_LINES else []
        raise ConfigError("\n".join([f"{name} is not a valid config:", *dict.fromkeys(lines), *more])) from None


def dump_config(config: RunConfig) -> str:
    """Return a config as YAML from which `load_config` loads an equal config."""
    return write_yaml(config.model_dump(mode="json"))


def flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield `(dotted key, value)` of nested mappings."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
