"""Options of a run: definitions, loading of YAML files, and detection of unused options."""

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
from .unused import changed_options, describe_unused, is_used, unused_options, unused_overrides
