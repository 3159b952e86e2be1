"""Load the pipeline of Albumentations of a config."""

from pathlib import Path

from data import Pipeline
from data.json_file import read_bytes, read_json
from data.paths import expanded

from ..config import DataConfig, YamlError, read_yaml

_KEY = "data.augment.albumentations"


def load_pipeline(data: DataConfig) -> Pipeline | None:
    """Read and check the file of `data.augment.albumentations`; None without one.

    Raises:
        ValueError: If the file cannot be read or used, or Albumentations is not installed.
    """
    if data.augment.albumentations is None:
        return None
    path = expanded(data.augment.albumentations)
    name = f"{_KEY} {path}"
    if path.suffix.lower() == ".json":
        content = read_json(path, _KEY)
    elif path.suffix.lower() in (".yaml", ".yml"):
        content = _read_yaml(path, name)
    else:
        raise ValueError(f"{name} must be a .yaml, .yml or .json file")
    return Pipeline(name, content, data.augment.min_visibility)


def _read_yaml(path: Path, name: str) -> object:
    try:
        return read_yaml(read_bytes(path, _KEY).decode("utf-8-sig"), lambda key: key.endswith("__"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} must be UTF-8, got another byte at position {error.start}") from None
    except YamlError as error:
        raise ValueError(f"{name} is not valid YAML{f', line {error.line}' if error.line else ''}: {error}") from None
