"""Load YAML files and command-line overrides into a checked `RunConfig`; all errors are reported at once."""

import difflib
import os
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from data.paths import resolved
from models.options import current_names

from .options import RunConfig
from .sections import keys_of

CONFIG_DIR = Path(__file__).resolve().parents[2] / "configs"
_COMMAND_LINE = "the command line does not fit the config:"


class ConfigError(ValueError):
    """A config is not valid; the message lists every error with its dotted key."""


class _Loader(yaml.SafeLoader):
    """YAML with the scalars of version 1.2.

    PyYAML follows 1.1, where 1e-4 is a string, off is false, 1:30 is 90 and 012 is 10.
    """

    yaml_implicit_resolvers: typing.ClassVar[dict] = {}


_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|)$"), ["~", "n", ""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$"), list("tf"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9]*)$"), list("-+0123456789"))
_FLOAT = re.compile(r"^[-+]?(?:(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.inf|\.nan)$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


class _Dumper(yaml.SafeDumper):
    """Quotes strings that YAML 1.1 or 1.2 would read as another type."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def _unique_mapping(loader: _Loader, node: yaml.MappingNode) -> dict:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    twice = next((key for index, key in enumerate(keys) if key in keys[:index]), None)
    if twice is not None:
        raise yaml.constructor.ConstructorError(None, None, f"key {twice!r} is given twice", node.start_mark)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _unique_mapping)


def load_config(source: str | os.PathLike | Mapping[str, Any] | RunConfig, overrides: Sequence[str] = ()) -> RunConfig:
    """Load a config file with its `base` files, apply overrides, and check the result.

    Args:
        source: config file, bare name of a file in `configs/`, mapping of options (without `base`), or config.
        overrides: `dotted.key=value`, the value in YAML.

    Returns:
        The config.

    Raises:
        ConfigError: if anything is not valid; the message lists every error.
    """
    if isinstance(source, RunConfig):
        source = source.model_dump(mode="json")
    if isinstance(source, Mapping):
        return with_overrides(with_current_names(source, "the mapping"), overrides, "the mapping")
    file = find_config(source)
    return with_overrides(_read_with_bases(file), overrides, str(file))


def with_overrides(values: dict[str, Any], overrides: Sequence[str], name: str) -> RunConfig:
    """Merge overrides into plain values with current names and check the result; the error contains `name`.

    Raises:
        ConfigError: if anything is not valid; the message lists every error.
    """
    return check_config(_merge(values, read_overrides(overrides)), name)


def read_overrides(overrides: Sequence[str], *, is_silent: bool = False) -> dict[str, Any]:
    """Return overrides as nested values with current names; the last value of a key counts.

    Args:
        overrides: `dotted.key=value`, the value in YAML.
        is_silent: see `models.options.current_names`.

    Raises:
        ConfigError: if anything is not valid; the message lists every error.
    """
    values: dict[str, Any] = {}
    problems = [problem for override in overrides for problem in _apply(values, override)]
    if problems:
        raise ConfigError("\n".join([_COMMAND_LINE, *problems]))
    return with_current_names(values, _COMMAND_LINE, is_silent=is_silent)


def with_current_names(
    values: Mapping[str, Any], name: str, *, is_silent: bool = False, is_written: bool = False
) -> dict[str, Any]:
    """Return a copy of a config with the current names of all options, see `models.options.current_names`.

    Args:
        values: config as plain values.
        name: source of the config, for the error.
        is_silent: see `models.options.current_names`.
        is_written: see `models.options.current_names`.

    Raises:
        ConfigError: if an option is given under an old and a current name.
    """
    marks = {key: field.metadata for key, field in keys_of(RunConfig)}
    try:
        return current_names(values, marks, is_silent=is_silent, is_written=is_written)
    except ValueError as error:
        head = name if name == _COMMAND_LINE else f"{name} is not a valid config:"
        raise ConfigError("\n".join([head, *(f"  - {line}" for line in str(error).splitlines())])) from None


def check_config(values: dict[str, Any], name: str) -> RunConfig:
    """Build a `RunConfig` from plain values; the error contains `name`.

    Raises:
        ConfigError: if anything is not valid; the message lists every error.
    """
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        lines = [f"  - {_describe(problem)}" for problem in error.errors()]
        raise ConfigError("\n".join([f"{name} is not a valid config:", *dict.fromkeys(lines)])) from None


def dump_config(config: RunConfig) -> str:
    """Return a config as YAML from which `load_config` loads an equal config."""
    values = config.model_dump(mode="json")
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=120)


def flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield `(dotted key, value)` of nested mappings."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def find_config(path: str | Path) -> Path:
    """Find a config file by its path, or in `configs/` by its bare name, with or without .yaml.

    Raises:
        ConfigError: if it does not exist; the message lists the files in `configs/`.
    """
    path = Path(path)
    if path.is_file():
        return path
    if path.parent == Path():
        for name in (path.name, f"{path.name}.yaml"):
            if (CONFIG_DIR / name).is_file():
                return CONFIG_DIR / name
    known = sorted(file.name for file in CONFIG_DIR.glob("*.yaml"))
    raise ConfigError(
        f"config {path} does not exist (resolved: {resolved(path)}); configs/ contains: {', '.join(known)}"
        f"{_guess(path.name.removesuffix('.yaml'), [name.removesuffix('.yaml') for name in known])}"
    )


def _read_with_bases(file: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    if resolved(file) in seen:
        raise ConfigError(f"{file}: the `base` files form a cycle")
    # training wrote the config of a run folder: no warnings, and the options of its time
    is_of_run = file.name == "config.yaml" and (file.parent / "metrics.jsonl").is_file()
    values = with_current_names(_read(file), str(file), is_written=is_of_run)
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ConfigError(f"{file}: `base` must name one YAML file, got {base!r}")
    sibling = file.parent / base
    try:
        parent = sibling if sibling.is_file() else find_config(base)
    except ConfigError as error:
        raise ConfigError(f"{file}: `base`: {error}") from None
    return _merge(_read_with_bases(parent, (*seen, resolved(file))), values)


def _read(file: Path) -> dict[str, Any]:
    try:
        values = yaml.load(file.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a subclass of SafeLoader
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{file} must contain a mapping of options, got {type(values).__name__}")
    return values


def _merge(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Override `base` by `values`: mappings are merged, all other values are replaced."""
    merged = dict(base)
    for key, value in values.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merge(base[key], value) if both else value
    return merged


def _apply(values: dict[str, Any], override: str) -> list[str]:
    """Set one `dotted.key=value` in place; return its errors."""
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        return [f"  - {override!r}: expected key=value, as in train.epochs=1"]
    try:
        value = yaml.load(text, _Loader)  # noqa: S506 - a subclass of SafeLoader
    except yaml.YAMLError as error:
        return [f"  - {dotted}: {text!r} is not a valid YAML value: {str(error).splitlines()[0]}"]
    *parents, key = dotted.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            return [f"  - {dotted}: {parent!r} is not a section"]
    values[key] = _merge({key: values.get(key)}, {key: value})[key]
    return []


def _describe(problem: dict[str, Any]) -> str:
    dotted = ".".join(str(part) for part in problem["loc"] if not _is_union_member(part))
    if problem["type"] == "extra_forbidden":
        dotted = ".".join(map(str, problem["loc"]))
        return f"{dotted}: unknown key{_guess(dotted, [key for key, _ in keys_of(RunConfig)])}"
    if problem["type"] == "missing":
        return f"{dotted}: is missing"
    return f"{dotted}: {problem['msg'].replace('Input should be', 'expected', 1)}, got {problem['input']!r}"


def _is_union_member(part: str | int) -> bool:
    """Whether a part of pydantic's location names a member of a union, as in int or list[...], and not a key."""
    return isinstance(part, str) and (part in ("int", "float", "str", "bool") or not re.fullmatch(r"\w+", part))


def _guess(name: str, known: Sequence[str]) -> str:
    """Return a "did you mean" for a misspelt name; for dotted names the last part counts, in any section."""
    last = name.rpartition(".")[2]
    by_last: dict[str, list[str]] = {}
    for key in known:
        by_last.setdefault(key.rpartition(".")[2], []).append(key)
    close = by_last.get(last) or difflib.get_close_matches(name, known, 1, 0.75)
    close = close or [key for match in difflib.get_close_matches(last, list(by_last), 1, 0.7) for key in by_last[match]]
    return f", did you mean {close[0]!r}?" if close else ""
