"""Files of a config: find, read and merge them."""

import codecs
import os
from pathlib import Path
from typing import Any

from data.paths import expanded, resolved
from data.shown import shown

from .errors import ConfigError, guess_of, named
from .keys import takes_text
from .names import with_current_names
from .yaml_values import YamlError, read_yaml

CONFIG_DIR = Path(__file__).resolve().parents[2] / "configs"
_MAX_BYTES = 2**18
_MAX_BASES = 20
# Keys of YOLO's data.yaml and of COCO files, which no config has at its top.
_OF_LABELS = {"names", "nc", "annotations"}
_IMPORT = "; to train on labels, `python tools/import_dataset.py {} OUT` converts them and writes a config"


def find_config(path: str | Path) -> Path:
    """Find a config file by its path, or in `configs/` by its bare name, with or without .yaml.

    Raises:
        ConfigError: if it does not exist; the message lists the files in `configs/`.
    """
    path = expanded(path)
    if _is_file(path):
        return path
    if path.parent == Path():
        for name in (path.name, f"{path.name}.yaml"):
            if _is_file(CONFIG_DIR / name):
                return CONFIG_DIR / name
    if os.path.exists(path):  # noqa: PTH110 - Path.exists() raises for a name that the system cannot have
        raise ConfigError(
            f"config {named(path)} must be a file, got {'a folder' if path.is_dir() else 'a device or pipe'}"
            f"{_IMPORT.format(named(path)) if path.is_dir() else ''}"
        )
    known = sorted(file.name for file in CONFIG_DIR.glob("*.yaml"))
    raise ConfigError(
        f"config {named(path)} does not exist (resolved: {named(resolved(path))}); configs/ contains: "
        f"{', '.join(known)}{guess_of(path.name.removesuffix('.yaml'), [name.removesuffix('.yaml') for name in known])}"
    )


def read_with_bases(file: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return the values of a file and of its `base` files.

    Raises:
        ConfigError: if one of them is not valid.
        OSError: if one of them cannot be read.
    """
    if resolved(file) in seen:
        raise ConfigError(f"{named(file)}: the `base` files form a cycle")
    if len(seen) > _MAX_BASES:
        raise ConfigError(f"{named(file)}: a config must have at most {_MAX_BASES} `base` files, each of the next")
    # training wrote the config of a run folder: no warnings, and the options of its time
    is_of_run = file.name == "config.yaml" and (file.parent / "metrics.jsonl").is_file()
    values = with_current_names(read_config(file), named(file), is_written=is_of_run)
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str) or not base:
        raise ConfigError(f"{named(file)}: `base` must name one YAML file, got {shown(base)}")
    sibling = file.parent / expanded(base)
    try:
        parent = sibling if _is_file(sibling) else find_config(base)
    except ConfigError as error:
        raise ConfigError(f"{named(file)}: `base`: {error}") from None
    return merge(read_with_bases(parent, (*seen, resolved(file))), values)


def read_config(file: Path) -> dict[str, Any]:
    """Return the values of one file.

    Raises:
        ConfigError: if it has no valid YAML, or no mapping.
        OSError: if it cannot be read.
    """
    with file.open("rb") as stream:
        content = stream.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise ConfigError(f"config {named(file)} must have at most {_MAX_BYTES:,} bytes, got more")
    if content.lstrip().startswith(b"<"):
        raise ConfigError(f"{named(file)} must be a config in YAML, got XML{_IMPORT.format(named(file))}")
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        values = read_yaml(content.decode(encoding), takes_text)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        bad = content[error.start : error.start + 1]
        raise ConfigError(
            f"{named(file)} is not valid YAML, line {line}: the file must be UTF-8, got the byte {bad!r}"
        ) from None
    except YamlError as error:
        place = f", line {error.line}" if error.line else ""
        raise ConfigError(f"{named(file)} is not valid YAML{place}: {error}") from None
    if not isinstance(values, dict):
        found = "nothing" if values is None else shown(values)
        raise ConfigError(f"{named(file)} must contain a mapping of options, got {found}")
    if values.keys() & _OF_LABELS and not values.keys() & {"base", "data", "model"}:
        raise ConfigError(f"{named(file)} describes a data set and is not a config{_IMPORT.format(named(file))}")
    return values


def merge(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Override `base` by `values`: mappings are merged, all other values are replaced."""
    merged = dict(base)
    for key, value in values.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = merge(base[key], value) if both else value
    return merged


def _is_file(path: Path) -> bool:
    return os.path.isfile(path)  # noqa: PTH113 - Path.is_file() raises for a name that is too long
