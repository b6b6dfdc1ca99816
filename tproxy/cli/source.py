"""Reading a configuration file: YAML to Config, with every fault naming the file."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from tproxy.core.config import Config
from tproxy.core.fields import ConfigError

CONFIG_VARIABLE = "TPROXY_CONFIG"  # as the injector writes it: YAML, or JSON, which is YAML


def read(path: str) -> Config:
    """The Config in a YAML file. ConfigError names the file and what to mend."""
    return Config.parse(load(path), path)


def load(path: str) -> Any:
    """The data in a YAML file."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(path, "", getattr(error, "strerror", None) or str(error)) from error
    return parse(text, path)


def parse(text: str, where: str) -> Any:
    """The data in YAML, in which no key may stand twice."""
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
    text = os.environ.get(CONFIG_VARIABLE)
    if text is not None:
        return Config.parse(parse(text, CONFIG_VARIABLE), CONFIG_VARIABLE)
    return Config.parse({}, "defaults")
