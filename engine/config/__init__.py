"""The options of a run: what they are, how YAML files are read, and which of them change nothing."""

from .loading import check_config, dump_config, flatten, load_config, with_overrides
from .options import (
    BackboneConfig,
    DataConfig,
    ModelConfig,
    RunConfig,
    TrainConfig,
    keys_that_affect,
    options_that_deform,
)
from .reference import reference_page, schema_text
from .unused import describe_unused, is_used, unused_options, unused_overrides

__all__ = [
    "BackboneConfig",
    "DataConfig",
    "ModelConfig",
    "RunConfig",
    "TrainConfig",
    "check_config",
    "describe_unused",
    "dump_config",
    "flatten",
    "is_used",
    "keys_that_affect",
    "load_config",
    "options_that_deform",
    "reference_page",
    "schema_text",
    "unused_options",
    "unused_overrides",
    "with_overrides",
]
