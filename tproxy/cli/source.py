"""Reading a configuration file: YAML to Config, with every fault naming the file."""

from __future__ import annotations

import argparse
from pathlib import Path

from tproxy.core.config import Config
from tproxy.core.fields import ConfigError


def read(path: str) -> Config:
    """The Config in a YAML file. ConfigError names the file and what to mend."""
    import yaml

    try:
        text = Path(path).read_text(encoding="utf-8")
        data = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(path, "", getattr(error, "strerror", None) or str(error)) from error
    except yaml.YAMLError as error:
        raise ConfigError(path, "", " ".join(str(error).split())) from error
    return Config.parse(data, path)


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
