"""The dotted keys of a config: current and old names, and the types of their values."""

from functools import cache

from pydantic.fields import FieldInfo

from models.options import renamed_options

from .options import RunConfig
from .sections import is_mapping, is_section, is_text, keys_of


@cache
def fields() -> dict[str, FieldInfo]:
    """Return the fields of all sections and options by dotted key."""
    return dict(keys_of(RunConfig))


def field_of(dotted: str) -> FieldInfo | None:
    """Return the field of a dotted key with current or old names; None for an unknown key."""
    return fields().get(_current(dotted))


def parts_of(dotted: str) -> list[str]:
    """Return the sections and the name of a dotted key. In options that are mappings a name may contain dots."""
    parts = dotted.split(".")
    for count in range(1, len(parts)):
        field = field_of(".".join(parts[:count]))
        if field is None:
            break
        if is_mapping(field):
            return [*parts[:count], ".".join(parts[count:])]
    return parts


def is_key(dotted: str) -> bool:
    """Whether a dotted key names an option or a section, by its current or an old name, or a part of an option."""
    parent = field_of(".".join(parts_of(dotted)[:-1]))
    return field_of(dotted) is not None or (parent is not None and not is_section(parent))


def takes_text(dotted: str) -> bool:
    """Whether the value of a key is a text."""
    field = field_of(dotted)
    return dotted == "base" or (field is not None and is_text(field))


def _current(dotted: str) -> str:
    """Return a dotted key with the current names of its sections and its option."""
    key = ""
    for part in dotted.split("."):
        key = f"{key}.{part}" if key else part
        key = _renamed().get(key, key)
        if key not in fields():
            return dotted
    return key


@cache
def _renamed() -> dict[str, str]:
    """Return one current name of each old name; all of them have the same type."""
    marks = {key: field.metadata for key, field in fields().items()}
    return {old: new[0] for old, new, _ in renamed_options(marks)}
