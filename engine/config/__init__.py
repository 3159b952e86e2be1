"""Options of a run: definitions, loading of YAML files, and detection of unused options."""

from .data_options import DataConfig
from .errors import guess_key
from .keys import is_key
from .loading import check_config, dump_config, flatten, load_config, with_overrides
from .names import with_current_names
from .options import (
    BackboneConfig,
    ModelConfig,
    RunConfig,
    TrainConfig,
    keys_that_affect,
    options_that_deform,
)
from .overrides import as_override, read_overrides
from .reference import reference_page, renamed_page, schema_text
from .unused import changed_options, describe_unused, is_used, unused_options, unused_overrides
from .yaml_values import YamlError, read_yaml
