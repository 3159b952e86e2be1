"""How an option is written: once, as a field of a frozen dataclass whose annotation holds what others need to know.

`engine/config/` makes its sections of these classes. Pydantic reads the marks by the methods that they have for it, so
that nothing here imports it.
"""

import ast
import copy
import dataclasses
import difflib
import enum
import inspect
import itertools
import textwrap
import typing
import warnings
from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, Any, NamedTuple, TypeVar

Options = TypeVar("Options")


class Affects(enum.Enum):
    """What another value of an option changes; the first that holds."""

    MEANING = "the same tensors compute something else, and nothing may start from weights of another value"
    NETWORK = "the network: a run cannot go on with another value, but another detector may start from what fits"
    RESULT = "what is learned or found, by a network whose weights mean the same"
    NOTHING = "nothing of a result: who computes, where files lie, what is shown or written"


@dataclasses.dataclass(frozen=True)
class Bounds:
    """The least and greatest value of a number, or the least and greatest length of a list."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    min_length: int | None = None
    max_length: int | None = None
    allow_inf_nan: bool | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> dict[str, Any]:
        """Add the bounds to what pydantic checks."""
        return {**handler(source), **{name: value for name, value in vars(self).items() if value is not None}}


@dataclasses.dataclass(frozen=True)
class Choices:
    """The names that an option may have, often the keys of a table; checked where the name is used."""

    names: Collection[str]

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        """List the names for editors and for the page of all keys."""
        return {**handler(schema), "enum": [*self.names]}


class Deforms(enum.Enum):
    """Marks an option that makes layers deformable unless it is 0 or empty."""

    LAYERS = enum.auto()


@dataclasses.dataclass(frozen=True)
class UsedIf:
    """Marks an option that nothing uses unless another one is set, or has one of some values.

    Attributes:
        option: the other one: a name in the same section, or a dotted key.
        values: with which the option is used; none: with any that is not empty, 0, false or null.
        otherwise: why nothing uses it, in words; empty: that the other one is what it is.
        if_given: whether it counts only for options of the command line, since base configs bring it along.
    """

    option: str
    values: tuple[Any, ...] = ()
    otherwise: str = ""
    if_given: bool = False


REMOVAL = "0.3.0"  # the release that no longer reads names marked by `OldName` and values marked by `OldValue`


@dataclasses.dataclass(frozen=True)
class OldName:
    """Marks an option or a section that had another name in the same section; using that name causes a warning.

    Two options with the same old name both get its value.
    """

    name: str


@dataclasses.dataclass(frozen=True)
class Alias:
    """Marks an option that has a second name in the same section, which stays valid."""

    name: str


@dataclasses.dataclass(frozen=True)
class OldValue:
    """Marks an option one value of which had another spelling; using that spelling causes a warning."""

    old: str
    new: str


class Renamed(NamedTuple):
    """A name that is read as other names.

    Attributes:
        old: dotted key, in a section that has its current name.
        new: dotted keys that get the value.
        is_deprecated: whether it is an `OldName`, not an `Alias`.
    """

    old: str
    new: tuple[str, ...]
    is_deprecated: bool


PositiveInt = Annotated[int, Bounds(ge=1)]
PositiveFloat = Annotated[float, Bounds(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Bounds(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Bounds(ge=0, le=1)]


def field_annotations(kind: type) -> dict[str, Any]:
    """Return the annotations of a class by field, with their marks."""
    return typing.get_type_hints(kind, include_extras=True)


def marks_of(kind: Any, section: str) -> dict[str, tuple[Any, ...]]:
    """Return the marks of the annotations of a class or function by dotted key; `section` is in front."""
    return {f"{section}.{name}": getattr(hint, "__metadata__", ()) for name, hint in field_annotations(kind).items()}


def renamed_options(marks: Mapping[str, Iterable[Any]]) -> list[Renamed]:
    """List the old names and aliases of options.

    Args:
        marks: of options and sections by dotted key, a section before its options.
    """
    found: dict[str, Renamed] = {}
    for key, own in marks.items():
        section = key[: key.rfind(".") + 1]
        for mark in own:
            if isinstance(mark, OldName | Alias):
                old = f"{section}{mark.name}"
                earlier = found[old].new if old in found else ()
                found[old] = Renamed(old, (*earlier, key), isinstance(mark, OldName))
    return [*found.values()]


def current_names(
    values: Mapping[str, Any], marks: Mapping[str, Iterable[Any]], *, is_silent: bool = False
) -> dict[str, Any]:
    """Return a copy of nested options in which old names, aliases and old values are replaced by the current ones.

    Args:
        values: plain values, sections as mappings.
        marks: see `renamed_options`.
        is_silent: whether a `FutureWarning` for each deprecated name or value is left out, as for files that this
            project wrote itself.

    Raises:
        ValueError: if an option is given under an old and a current name, with one line for each.
    """
    current = copy.deepcopy(dict(values))
    problems, notes = [], []
    for old, new, is_deprecated in renamed_options(marks):
        section, name = _section_with(current, old)
        if section is None:
            continue
        value, targets = section.pop(name), [key.rpartition(".")[2] for key in new]
        problems += [
            f"{old} and {key} are one option: give {key} alone"
            for key, t in zip(new, targets, strict=True)
            if t in section
        ]
        section |= {target: copy.deepcopy(value) for target in targets}
        if is_deprecated:
            notes.append(f"{old} is deprecated and will be removed in {REMOVAL}: use {' and '.join(new)}")
    for key, own in marks.items():
        section, name = _section_with(current, key)
        for mark in own:
            if isinstance(mark, OldValue) and section is not None and section[name] == mark.old:
                section[name] = mark.new
                notes.append(f"{key}={mark.old} is deprecated and will be removed in {REMOVAL}: use {mark.new}")
    if problems:
        raise ValueError("\n".join(problems))
    for note in [] if is_silent else notes:
        warnings.warn(note, FutureWarning, stacklevel=2)
    return current


def _section_with(values: dict[str, Any], dotted: str) -> tuple[dict[str, Any] | None, str]:
    """Return the section that holds a dotted key, None if it does not exist or lacks the key, and the last name."""
    *parents, name = dotted.split(".")
    section: Any = values
    for parent in parents:
        section = section.get(parent) if isinstance(section, dict) else None
    return (section if isinstance(section, dict) and name in section else None), name


def field_docs(kind: type) -> dict[str, str]:
    """Return the sentences below the fields of a dataclass and of those that it inherits from, by field."""
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
    """Make options of plain values; those that are not given have their defaults.

    Args:
        kind: dataclass of the options.
        values: by field.
        name: of what they are options of, for the error.

    Raises:
        ValueError: if a name is unknown.
    """
    check_options(values, [field.name for field in dataclasses.fields(kind)], name)
    return kind(**values)


def check_options(values: Any, known: Collection[str], name: str) -> None:
    """Raise `ValueError` unless options of `name` are a mapping whose keys are known."""
    if not isinstance(values, Mapping):
        raise ValueError(f"options of {name} must be a dict, got {values!r:.60}")
    for key in values.keys() - {*known}:
        close = difflib.get_close_matches(str(key), known, 1)
        hint = f", did you mean {close[0]!r}?" if close else ";"
        raise ValueError(f"unknown option {key!r} of {name}{hint} known: {', '.join(known)}")
