"""Sections of a config and their fields."""

import dataclasses
from collections.abc import Iterator
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, create_model
from pydantic.fields import FieldInfo

from models.options import field_annotations, field_docs


class Section(BaseModel):
    """Strict: no unknown keys, no conversions, no changes afterwards."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


@cache
def section_of(options: type) -> type[Section]:
    """Build a section from a dataclass of options, see `models.options`."""
    kinds, docs = field_annotations(options), field_docs(options)
    defaults = options()
    fields = {
        field.name: (kinds[field.name], Field(getattr(defaults, field.name), description=docs.get(field.name)))
        for field in dataclasses.fields(options)
    }
    return create_model(options.__name__, __base__=Section, __doc__=options.__doc__, **fields)


def keys_of(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield every dotted key of a section with its field, sections included."""
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}", field
        if kind := _section_in(field):
            yield from keys_of(kind, f"{prefix}{name}.")


def options_of(section: type[BaseModel]) -> dict[str, FieldInfo]:
    """Return the fields of a section and of those below it by dotted key, without the sections themselves."""
    return {key: field for key, field in keys_of(section) if not _section_in(field)}


def is_section(field: FieldInfo) -> bool:
    """Whether a field contains a section, also as an alternative to null."""
    return _section_in(field) is not None


def is_text(field: FieldInfo) -> bool:
    """Whether the values of an option are texts or null."""
    kinds = [kind for kind in _kinds(field) if kind is not NoneType]
    return all(
        kind is str or (get_origin(kind) is Literal and all(isinstance(value, str) for value in get_args(kind)))
        for kind in kinds
    )


def is_nullable(field: FieldInfo) -> bool:
    """Whether null is a value of an option."""
    return NoneType in _kinds(field)


def is_mapping(field: FieldInfo) -> bool:
    """Whether the values of an option are mappings whose keys the user chooses."""
    return any(get_origin(kind) is dict for kind in _kinds(field))


def _section_in(field: FieldInfo) -> type[BaseModel] | None:
    """Return the section that a field contains, also as an alternative to null; None for an option."""
    return next((kind for kind in _kinds(field) if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _kinds(field: FieldInfo) -> tuple[Any, ...]:
    """Return the alternatives of a field's type, without their annotations."""
    is_union = isinstance(field.annotation, UnionType) or get_origin(field.annotation) is Union
    kinds = get_args(field.annotation) if is_union else (field.annotation,)
    return tuple(get_args(kind)[0] if get_origin(kind) is Annotated else kind for kind in kinds)
