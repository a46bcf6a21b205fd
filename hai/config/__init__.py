"""The configuration of a run: its schema, how it is read, what a resume may change. Imports neither torch nor ray."""

from hai.config.compare import Difference, compare_configs
from hai.config.fields import config_fields, config_reference, config_schema
from hai.config.load import config_from_yaml_text, load_config, show_config
from hai.config.schema import RunConfig

__all__ = [
    "Difference",
    "RunConfig",
    "compare_configs",
    "config_fields",
    "config_from_yaml_text",
    "config_reference",
    "config_schema",
    "load_config",
    "show_config",
]
