"""Annotations of options: each option is one field of a frozen dataclass, whose type hint carries its properties.

`engine/config/` builds the sections of the config from these classes. Pydantic reads the annotations by the methods
that they define for it, so that this module does not import pydantic.
"""

import ast
import copy
import dataclasses
import difflib
import enum
import inspect
import itertools
import re
import textwrap
import typing
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Annotated, Any, NamedTuple, TypeVar

Options = TypeVar("Options")


class Affects(enum.Enum):
    """The effect of another value of an option; the first that applies."""

    MEANING = "the same tensors compute something else: weights of another value cannot be loaded"
    NETWORK = "the network: a run cannot resume with another value, but fine-tuning can load matching tensors"
    RESULT = "training or detections of a network whose weights have the same meaning"
    NOTHING = "not the result: devices, file locations, display and logging"


@dataclasses.dataclass(frozen=True)
class Bounds:
    """The minimum and maximum of a number, or of the length of a list; the names are pydantic's."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    min_length: int | None = None
    max_length: int | None = None
    allow_inf_nan: bool | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> dict[str, Any]:
        """Add the bounds to pydantic's schema."""
        return {**handler(source), **{name: value for name, value in vars(self).items() if value is not None}}


@dataclasses.dataclass(frozen=True)
class Choices:
    """The valid names of an option, often the keys of a table."""

    names: Collection[str]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> dict[str, Any]:
        """Add the check of the name to pydantic's schema."""
        return _checked(handler(source), self.check)

    def check(self, name: str) -> str:
        """Return a name.

        Raises:
            ValueError: If it is not one of the names.
        """
        if name not in self.names:
            raise ValueError(f"expected one of {', '.join(self.names)}")
        return name

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        """Add the names to the JSON schema, for editors and the configuration reference."""
        return {**handler(schema), "enum": [*self.names]}


@dataclasses.dataclass(frozen=True)
class Form:
    """The form of a text.

    Attributes:
        pattern: Regular expression of the whole text.
        words: Description of the form, for the error.
    """

    pattern: str
    words: str

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> dict[str, Any]:
        """Add the check of the text to pydantic's schema."""
        return _checked(handler(source), self.check)

    def check(self, text: str) -> str:
        """Return a text.

        Raises:
            ValueError: If it does not have this form.
        """
        if not re.fullmatch(self.pattern, text):
            raise ValueError(f"expected {self.words}")
        return text

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        """Add the pattern to the JSON schema, for editors and the configuration reference."""
        return {**handler(schema), "pattern": f"^(?:{self.pattern})$"}


def _checked(schema: dict[str, Any], check: Callable[[str], str]) -> dict[str, Any]:
    """Return pydantic's schema of a value that `check` returns, or raises `ValueError` for."""
    return {"type": "function-after", "function": {"type": "no-info", "function": check}, "schema": schema}


class Deforms(enum.Enum):
    """Annotation of an option that makes layers deformable unless it is 0 or empty."""

    LAYERS = enum.auto()


@dataclasses.dataclass(frozen=True)
class UsedIf:
    """Annotation of an option that is unused unless another option is set or has certain values.

    Attributes:
        option: The other option: a name in the same section, or a dotted key.
        values: Values of the other option with which this one is used; if empty, any except empty, 0, false and null.
        otherwise: Reason why the option is unused, for the warning; if empty, the value of the other option.
        if_given: Whether the warning applies only to options from the command line, because base configs contain it.
    """

    option: str
    values: tuple[Any, ...] = ()
    otherwise: str = ""
    if_given: bool = False


# bounds of a config, whose values may come from a file of others
MAX_DEPTH = 20  # of lists and mappings in each other; configs have 4
MAX_VALUES = 10_000
REMOVAL = "0.3.0"  # the release that no longer reads names marked by `OldName` and values marked by `OldValue`


@dataclasses.dataclass(frozen=True)
class OldName:
    """Annotation of an option or section with a deprecated name in the same section, which causes a warning.

    A name with a dot is a whole dotted key, of another section. Two options with the same old name both get its value.
    """

    name: str


@dataclasses.dataclass(frozen=True)
class Alias:
    """Annotation of an option with a second name in the same section, which remains valid."""

    name: str


@dataclasses.dataclass(frozen=True)
class Word:
    """Annotation of a section that may be one word instead: the value of an option, with null for all others."""

    option: str

    def section(self, key: str, word: str, known: Iterable[str]) -> dict[str, str | None]:
        """Return the section that a word means; `key` is its dotted key, `known` are the dotted keys of a config.

        The options that are null override the values of a `base` file.
        """
        parts = [other.removeprefix(f"{key}.") for other in known if other.startswith(f"{key}.")]
        return {part: None for part in parts if "." not in part} | {self.option: word}


@dataclasses.dataclass(frozen=True)
class OldValue:
    """Annotation of an option whose value has a deprecated spelling, which causes a warning."""

    old: str
    new: str


@dataclasses.dataclass(frozen=True)
class ValueBefore:
    """Annotation of an option with the value that it had before it existed, in configs that this project wrote then.

    The checkpoints and run folders of such configs keep their meaning if the default of the option is another one.
    """

    value: Any


class Renamed(NamedTuple):
    """A name that is read as one or more other names.

    Attributes:
        old: Dotted key; the section has its current name.
        new: Dotted keys that get the value.
        is_deprecated: Whether it is an `OldName`, not an `Alias`.
    """

    old: str
    new: tuple[str, ...]
    is_deprecated: bool


# Each number has a minimum and a maximum: a value far above all sensible values is an error, and costs a run.
PositiveInt = Annotated[int, Bounds(ge=1, le=1_000_000)]
NonNegativeInt = Annotated[int, Bounds(ge=0, le=1_000_000)]
PositiveFloat = Annotated[float, Bounds(gt=0, le=1e6, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Bounds(ge=0, le=1e6, allow_inf_nan=False)]
Fraction = Annotated[float, Bounds(ge=0, le=1)]
Count = Annotated[int, Bounds(ge=1, le=100_000)]  # of boxes or anchors
Pixels = Annotated[int, Bounds(ge=1, le=16_384)]
Channels = Annotated[int, Bounds(ge=1, le=8192)]
AspectRatio = Annotated[float, Bounds(ge=0.001, le=1000)]


def field_annotations(kind: type) -> dict[str, Any]:
    """Return the type hints of a class by field, including the annotations of this module."""
    return typing.get_type_hints(kind, include_extras=True)


def marks_of(kind: Any, section: str) -> dict[str, tuple[Any, ...]]:
    """Return the annotations of a class's or function's options by dotted key; `section` is the prefix."""
    return {f"{section}.{name}": getattr(hint, "__metadata__", ()) for name, hint in field_annotations(kind).items()}


def renamed_options(marks: Mapping[str, Iterable[Any]]) -> list[Renamed]:
    """Return the old names and aliases of options.

    Args:
        marks: Annotations of options and sections by dotted key, a section before its options.
    """
    found: dict[str, Renamed] = {}
    for key, own in marks.items():
        section = key[: key.rfind(".") + 1]
        for mark in own:
            if isinstance(mark, OldName | Alias):
                old = mark.name if "." in mark.name else f"{section}{mark.name}"
                earlier = found[old].new if old in found else ()
                found[old] = Renamed(old, (*earlier, key), isinstance(mark, OldName))
    return [*found.values()]


def current_names(
    values: Mapping[str, Any],
    marks: Mapping[str, Iterable[Any]],
    *,
    is_silent: bool = False,
    is_written: bool = False,
) -> dict[str, Any]:
    """Return a copy of nested options with old names, aliases and old values replaced by the current ones.

    Args:
        values: Plain values, with sections as mappings.
        marks: See `renamed_options`.
        is_silent: Whether to skip the `FutureWarning` for each deprecated name or value.
        is_written: Whether this project wrote the values as a whole config, as in a checkpoint. Missing options then
            get their `ValueBefore`, and the function does not warn.

    Raises:
        ValueError: If an option is given under an old and a current name, with one line for each, or if the values
            are nested too deeply or are too many.
    """
    current = _copied(values, itertools.count(1))
    problems, notes = [], []
    _replace_words(current, marks)
    for old, new, is_deprecated in renamed_options(marks):
        section, name = _section_with(current, old)
        if section is None:
            continue
        value = section.pop(name)
        for key in new:
            target, option = _made_parent(current, key), key.rpartition(".")[2]
            if not isinstance(target, dict):
                continue  # the check of the config reports a section that is not a mapping
            is_moved = target is not section
            if option in target and not (is_moved and target[option] is None):  # null comes from a `Word`
                problems.append(f"{old} and {key} are the same option: set only {key}")
            target[option] = copy.deepcopy(value)
        if is_deprecated:
            notes.append(f"{old} is deprecated and will be removed in {REMOVAL}: use {' and '.join(new)}")
    for key, own in marks.items() if is_written else ():
        for mark in own:
            if isinstance(mark, ValueBefore) and isinstance(section := _parent_of(current, key), dict):
                section.setdefault(key.rpartition(".")[2], mark.value)
    for key, own in marks.items():
        section, name = _section_with(current, key)
        for mark in own:
            if isinstance(mark, OldValue) and section is not None and section[name] == mark.old:
                section[name] = mark.new
                notes.append(f"{key}={mark.old} is deprecated and will be removed in {REMOVAL}: use {mark.new}")
    if problems:
        raise ValueError("\n".join(problems))
    for note in [] if is_silent or is_written else notes:
        warnings.warn(note, FutureWarning, stacklevel=2)
    return current


def _copied(value: Any, numbers: Iterator[int], depth: int = 0) -> Any:
    """Return a copy of nested plain values without shared parts, whose size is bounded."""
    if depth > MAX_DEPTH:
        raise ValueError(f"lists and mappings must be nested at most {MAX_DEPTH} deep")
    if next(numbers) > MAX_VALUES:
        raise ValueError(f"a config must have at most {MAX_VALUES:,} values")
    if isinstance(value, Mapping):
        return {key: _copied(item, numbers, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_copied(item, numbers, depth + 1) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return value


def _replace_words(values: dict[str, Any], marks: Mapping[str, Iterable[Any]]) -> None:
    """Replace the words that mean sections, in place, see `Word`."""
    for key, own in marks.items():
        section, name = _section_with(values, key)
        for mark in own:
            if isinstance(mark, Word) and section is not None and isinstance(section[name], str):
                section[name] = mark.section(key, section[name], marks)


def _section_with(values: dict[str, Any], dotted: str) -> tuple[dict[str, Any] | None, str]:
    """Return the section of a dotted key, or None if the key is missing, and the last part of its name."""
    section, name = _parent_of(values, dotted), dotted.rpartition(".")[2]
    return (section if isinstance(section, dict) and name in section else None), name


def _parent_of(values: dict[str, Any], dotted: str) -> Any:
    """Return the section that can contain a dotted key, or None if it is missing."""
    section: Any = values
    for parent in dotted.split(".")[:-1]:
        section = section.get(parent) if isinstance(section, dict) else None
    return section


def _made_parent(values: dict[str, Any], dotted: str) -> Any:
    """Return the section that can contain a dotted key; a missing section is added."""
    section: Any = values
    for parent in dotted.split(".")[:-1]:
        section = section.setdefault(parent, {}) if isinstance(section, dict) else None
    return section


def field_docs(kind: type) -> dict[str, str]:
    """Return the docstrings below the fields of a dataclass and its base classes, by field."""
    docs = {}
    for part in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(part):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(part))).body[0].body
        for field, text in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                docs[field.target.id] = inspect.cleandoc(text.value.value)
    return docs


def read_options(kind: type[Options], values: Mapping[str, Any], name: str) -> Options:
    """Return options built from plain values; missing options have their defaults.

    Args:
        kind: Dataclass of the options.
        values: Values by field.
        name: Name of the section, for the error message.

    Raises:
        ValueError: If a name is unknown.
    """
    check_options(values, [field.name for field in dataclasses.fields(kind)], name)
    return kind(**values)


def check_options(values: Any, known: Collection[str], name: str) -> None:
    """Raise `ValueError` unless the options of `name` are a mapping with known keys."""
    if not isinstance(values, Mapping):
        raise ValueError(f"options of {name} must be a dict, got {values!r:.60}")
    for key in values.keys() - {*known}:
        close = difflib.get_close_matches(str(key), known, 1)
        hint = f", did you mean {close[0]!r}?" if close else ";"
        raise ValueError(f"unknown option {key!r} of {name}{hint} known: {', '.join(known)}")
