"""How an option is written: once, as a field of a frozen dataclass whose annotation holds what others need to know.

`engine/config/` makes its sections of these classes. Pydantic reads the marks by the methods that they have for it, so
that nothing here imports it.
"""

import ast
import dataclasses
import difflib
import enum
import inspect
import itertools
import textwrap
import typing
from collections.abc import Collection, Mapping
from typing import Annotated, Any, TypeVar

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


PositiveInt = Annotated[int, Bounds(ge=1)]
PositiveFloat = Annotated[float, Bounds(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Bounds(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Bounds(ge=0, le=1)]


def field_annotations(kind: type) -> dict[str, Any]:
    """Return the annotations of a class by field, with their marks."""
    return typing.get_type_hints(kind, include_extras=True)


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
