"""Reading a configuration file and the objects it names: YAML to Config, with every fault naming the file."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tproxy.core.config import Config
from tproxy.core.effective import settle
from tproxy.core.fields import ConfigError, Fields
from tproxy.core.manifest import Manifest, manifests, policy_paths

_YAML = (".yaml", ".yml", ".json")


def read(path: str) -> Config:
    """The Config in a YAML file, settled if it names our namespace. ConfigError names the file and what to mend."""
    data = read_yaml(path)
    found = (manifest for place in policy_paths(Fields(data, path)) for manifest in read_manifests(place))
    config = Config.parse(data, path, found)
    return settle(config, None) if config.workload.namespace else config


def read_manifests(place: str) -> Iterator[Manifest]:
    """The objects in a file, or in the files of a folder; hidden ones are the kubelet's."""
    for path in _files(Path(place)):
        for number, document in enumerate(_documents(str(path)), 1):
            yield from manifests(document, str(path) if number == 1 else f"{path} document {number}")


def _files(place: Path) -> list[Path]:
    try:
        inside = place.is_dir()
        files = sorted(path for path in place.iterdir() if not path.name.startswith(".")) if inside else [place]
    except OSError as error:
        raise ConfigError(str(place), "policies", error.strerror or str(error)) from error
    for path in files:
        if path.exists() and not path.is_file():
            raise ConfigError(str(path), "policies", "is not a file; list a folder in a folder by itself")
        if inside and path.suffix not in _YAML:
            raise ConfigError(str(path), "policies", f"is not {', '.join(_YAML)}; it would be ignored")
    return files


def read_yaml(path: str) -> Any:
    """What a YAML file holds. ConfigError names the file and the line, also when it holds more than one document."""
    found = _documents(path)
    if len(found) > 1:
        raise ConfigError(path, "", f"holds {len(found)} documents, expected one")
    return found[0] if found else None


def _documents(path: str) -> list[Any]:
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
            return list(yaml.load_all(file, Loader))
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
