"""Current names for the old names of options and sections."""

from collections.abc import Mapping
from typing import Any

from models.options import current_names

from .errors import ConfigError
from .keys import fields

COMMAND_LINE = "the command line does not fit the config:"


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
    marks = {key: field.metadata for key, field in fields().items()}
    try:
        return current_names(values, marks, is_silent=is_silent, is_written=is_written)
    except ValueError as error:
        head = name if name == COMMAND_LINE else f"{name} is not a valid config:"
        raise ConfigError("\n".join([head, *(f"  - {line}" for line in str(error).splitlines())])) from None
