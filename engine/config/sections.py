"""Sections of a config and their fields."""

import dataclasses
from collections.abc import Iterator
from functools import cache
from types import UnionType
from typing import get_args

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


def _section_in(field: FieldInfo) -> type[BaseModel] | None:
    """Return the section that a field contains, also as an alternative to null; None for an option."""
    kinds = get_args(field.annotation) if isinstance(field.annotation, UnionType) else (field.annotation,)
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
