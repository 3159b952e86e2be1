"""YAML files and command-line overrides to a checked `RunConfig`, every mistake reported at once."""

import difflib
import os
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from models.options import current_names

from .options import RunConfig
from .sections import keys_of

CONFIG_DIR = Path(__file__).resolve().parents[2] / "configs"
_COMMAND_LINE = "the command line does not fit the config:"


class ConfigError(ValueError):
    """A config that cannot be used; the message lists every mistake with its dotted key."""


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
    """Quotes the strings that either version of YAML takes for something else."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def _unique_mapping(loader: _Loader, node: yaml.MappingNode) -> dict:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    twice = next((key for index, key in enumerate(keys) if key in keys[:index]), None)
    if twice is not None:
        raise yaml.constructor.ConstructorError(None, None, f"key {twice!r} stands twice", node.start_mark)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _unique_mapping)


def load_config(source: str | os.PathLike | Mapping[str, Any] | RunConfig, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a config file with its `base` files, apply overrides, and check the whole.

    Args:
        source: a file, the bare name of one in `configs/`, the options of one as a mapping (without `base`), or a
            config.
        overrides: `dotted.key=value`, the value in YAML.

    Raises:
        ConfigError: listing everything that is wrong.
    """
    if isinstance(source, RunConfig):
        source = source.model_dump(mode="json")
    if isinstance(source, Mapping):
        return with_overrides(with_current_names(source, "the mapping"), overrides, "the mapping")
    file = find_config(source)
    return with_overrides(_read_with_bases(file), overrides, str(file))


def with_overrides(values: dict[str, Any], overrides: Sequence[str], name: str) -> RunConfig:
    """Merge overrides into plain values with current names and check the result; `name` is for the error.

    Raises:
        ConfigError: listing everything that is wrong.
    """
    return check_config(_merge(values, read_overrides(overrides)), name)


def read_overrides(overrides: Sequence[str], *, is_silent: bool = False) -> dict[str, Any]:
    """Return `dotted.key=value` overrides as nested values with current names; the last value of a key counts.

    Args:
        overrides: values in YAML.
        is_silent: see `models.options.current_names`.

    Raises:
        ConfigError: listing everything that is wrong.
    """
    values: dict[str, Any] = {}
    problems = [problem for override in overrides for problem in _apply(values, override)]
    if problems:
        raise ConfigError("\n".join([_COMMAND_LINE, *problems]))
    return with_current_names(values, _COMMAND_LINE, is_silent=is_silent)


def with_current_names(values: Mapping[str, Any], name: str, *, is_silent: bool = False) -> dict[str, Any]:
    """Return a copy of plain values with the current names of all options, see `models.options.current_names`.

    Args:
        values: of a config.
        name: of their source, for the error.
        is_silent: see there.

    Raises:
        ConfigError: if an option is given under an old and a current name.
    """
    marks = {key: field.metadata for key, field in keys_of(RunConfig)}
    try:
        return current_names(values, marks, is_silent=is_silent)
    except ValueError as error:
        head = name if name == _COMMAND_LINE else f"{name} is not a valid config:"
        raise ConfigError("\n".join([head, *(f"  - {line}" for line in str(error).splitlines())])) from None


def check_config(values: dict[str, Any], name: str) -> RunConfig:
    """Turn plain values into a `RunConfig`; `name` stands in the error.

    Raises:
        ConfigError: listing everything that is wrong.
    """
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        lines = [f"  - {_describe(problem)}" for problem in error.errors()]
        raise ConfigError("\n".join([f"{name} is not a valid config:", *dict.fromkeys(lines)])) from None


def dump_config(config: RunConfig) -> str:
    """Write a config as YAML that `load_config` reads back to an equal one."""
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
    """Find a config file: as the path says, or in `configs/` for a bare name, with or without .yaml.

    Raises:
        ConfigError: if there is none, with what there is.
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
        f"config {path} does not exist (resolved: {path.resolve()}); in configs/ there are: {', '.join(known)}"
        f"{_guess(path.name.removesuffix('.yaml'), [name.removesuffix('.yaml') for name in known])}"
    )


def _read_with_bases(file: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    if file.resolve() in seen:
        raise ConfigError(f"{file}: the chain of `base` files runs in a circle")
    # training wrote the config of a run folder, so a warning about its names would not help
    is_of_run = file.name == "config.yaml" and (file.parent / "metrics.jsonl").is_file()
    values = with_current_names(_read(file), str(file), is_silent=is_of_run)
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ConfigError(f"{file}: `base` must name one YAML file, got {base!r}")
    beside = file.parent / base
    try:
        parent = beside if beside.is_file() else find_config(base)
    except ConfigError as error:
        raise ConfigError(f"{file}: `base`: {error}") from None
    return _merge(_read_with_bases(parent, (*seen, file.resolve())), values)


def _read(file: Path) -> dict[str, Any]:
    try:
        values = yaml.load(file.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a subclass of SafeLoader
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is no YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{file} must hold a mapping of options, got {type(values).__name__}")
    return values


def _merge(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Lay `values` over `base`: mappings merge, everything else replaces."""
    merged = dict(base)
    for key, value in values.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merge(base[key], value) if both else value
    return merged


def _apply(values: dict[str, Any], override: str) -> list[str]:
    """Set one `dotted.key=value` in place; returns what is wrong with it."""
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        return [f"  - {override!r}: expected key=value, as in train.epochs=1"]
    try:
        value = yaml.load(text, _Loader)  # noqa: S506 - a subclass of SafeLoader
    except yaml.YAMLError as error:
        return [f"  - {dotted}: {text!r} is no YAML value: {str(error).splitlines()[0]}"]
    *parents, key = dotted.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            return [f"  - {dotted}: {parent!r} is no section"]
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
    """Whether a part of pydantic's place is no key but the member of a union that was tried, as in int or list[...]."""
    return isinstance(part, str) and (part in ("int", "float", "str", "bool") or not re.fullmatch(r"\w+", part))


def _guess(name: str, known: Sequence[str]) -> str:
    """A "did you mean" for a misspelt name; for dotted ones the last part counts, wherever it belongs."""
    last = name.rpartition(".")[2]
    by_last: dict[str, list[str]] = {}
    for key in known:
        by_last.setdefault(key.rpartition(".")[2], []).append(key)
    close = by_last.get(last) or difflib.get_close_matches(name, known, 1, 0.75)
    close = close or [key for match in difflib.get_close_matches(last, list(by_last), 1, 0.7) for key in by_last[match]]
    return f", did you mean {close[0]!r}?" if close else ""
