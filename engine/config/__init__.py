"""The options of a run: what they are, how YAML files are read, and which of them change nothing."""

from .loading import (
    check_config,
    dump_config,
    flatten,
    load_config,
    read_overrides,
    with_current_names,
    with_overrides,
)
from .options import (
    BackboneConfig,
    DataConfig,
    ModelConfig,
    RunConfig,
    TrainConfig,
    keys_that_affect,
    options_that_deform,
)
from .reference import reference_page, renamed_page, schema_text
from .unused import describe_unused, is_used, unused_options, unused_overrides
