"""Reading a configuration file: YAML to Config, with every fault naming the file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tproxy.core.config import Config
from tproxy.core.fields import ConfigError


def read(path: str) -> Config:
    """The Config in a YAML file. ConfigError names the file and what to mend."""
    return Config.parse(read_yaml(path), path)


def read_yaml(path: str) -> Any:
    """What a YAML file holds. ConfigError names the file and the line."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses a key that stands twice, where YAML would let the last one win."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            seen: set[str] = set()
            for key, _ in node.value:
                if str(key.value) in seen:
                    raise yaml.MarkedYAMLError(problem=f"{key.value} stands here twice", problem_mark=key.start_mark)
                seen.add(str(key.value))
            return super().construct_mapping(node, deep)

    try:
        with Path(path).open(encoding="utf-8") as file:
            return yaml.load(file, Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(path, "", getattr(error, "strerror", None) or str(error)) from error
    except yaml.MarkedYAMLError as error:  # without the line itself: it may be a key
        line = f"line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(path, line, error.problem or "is not YAML") from error
    except yaml.YAMLError as error:
        raise ConfigError(path, "", "is not YAML") from error


def add_config_option(parser: argparse.ArgumentParser) -> None:
    """The option that most verbs share."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="YAML of this pod's sidecar; without it the defaults hold: capture everything, strict, egress deny",
    )


def config_of(args: argparse.Namespace) -> Config:
    """The Config that the arguments name, or the defaults."""
    return read(args.config) if args.config else Config.parse({}, "defaults")
