"""Where a sidecar's configuration comes from, and the objects that it names; every fault names the file."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from tproxy.cli.documents import documents, one_yaml, read_text, read_yaml
from tproxy.core.config import Config
from tproxy.core.egress.config import parse_routes
from tproxy.core.fields import ConfigError, Fields
from tproxy.core.inject.containers import CONFIG
from tproxy.core.podinfo import pod_labels
from tproxy.core.policy.effective import settle
from tproxy.core.policy.manifest import Manifest, manifests, parse_policies

_YAML = (".yaml", ".yml", ".json")


def read(path: str) -> Config:
    """The Config in a YAML file, settled if it names our namespace. ConfigError names the file and what to mend."""
    return _parsed(read_yaml(path), path)


def _parsed(data: Any, where: str) -> Config:
    found = (manifest for place in parse_policies(Fields(data, where))[0] for manifest in read_manifests(place))
    config = Config.parse(data, where, found)
    whole = not config.follows and not config.workload.labels_file
    return settle(config, None) if whole and config.workload.namespace else config


def labelled(config: Config) -> Config:
    """With the labels of ``workload.labelsFile``, which only the sidecar's container has. ConfigError names it."""
    path = config.workload.labels_file
    if not path:
        return config
    return replace(config, workload=replace(config.workload, labels=pod_labels(read_text(path), path)))


def routed(config: Config) -> Config:
    """With what stands in ``egressRoutes.file``, which only the sidecar's container has. ConfigError names it."""
    path = config.egress_routes.file
    if not path:
        return config
    found = parse_routes(Fields(read_yaml(path), path), config.capture)
    if found.file:
        raise ConfigError(path, "file", "names a file in turn; the rules themselves stand here", found.file)
    return replace(config, egress_routes=replace(found, file=path))


def read_manifests(place: str) -> Iterator[Manifest]:
    """The objects in a file, or in the files of a folder; hidden ones are the kubelet's."""
    for path in map(str, _files(Path(place))):
        for number, document in enumerate(documents(read_text(path), path), 1):
            yield from manifests(document, path if number == 1 else f"{path} document {number}")


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
        return _parsed(one_yaml(text, CONFIG), CONFIG)
    return Config.parse({}, "defaults")
