"""Reading a configuration file: YAML to Config, with every fault naming the file."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from tproxy.core.config import Config
from tproxy.core.containers import CONFIG
from tproxy.core.fields import ConfigError


def read(path: str) -> Config:
    """The Config in a YAML file. ConfigError names the file and what to mend."""
    return Config.parse(read_yaml(path), path)


def read_yaml(path: str) -> Any:
    """What a YAML file holds. ConfigError names the file and the line."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(path, "", getattr(error, "strerror", None) or str(error)) from error
    return parse_yaml(text, path)


def parse_yaml(text: str, where: str) -> Any:
    """What YAML says, in which no key may stand twice."""
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
        return yaml.load(text, Loader)
    except yaml.MarkedYAMLError as error:  # without the line itself: it may be a key
        line = f"line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(where, line, error.problem or "is not YAML") from error
    except yaml.YAMLError as error:
        raise ConfigError(where, "", "is not YAML") from error


def add_config_option(parser: argparse.ArgumentParser) -> None:
    """The option that most verbs share."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="YAML of this pod's sidecar; without it the environment's TPROXY_CONFIG holds, which the injector writes, "
        "and without that the defaults: capture everything, strict, egress deny",
    )


def config_of(args: argparse.Namespace) -> Config:
    """The Config that the arguments name, or the environment holds, or the defaults."""
    if args.config:
        return read(args.config)
    if (text := os.environ.get(CONFIG)) is not None:
        return Config.parse(parse_yaml(text, CONFIG), CONFIG)
    return Config.parse({}, "defaults")
