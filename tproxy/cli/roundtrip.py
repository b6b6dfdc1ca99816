"""A YAML document that keeps its comments, quotes and order while a JSON Patch is applied to it."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent
from ruamel.yaml.scalarstring import SingleQuotedScalarString
from yaml.nodes import ScalarNode
from yaml.resolver import Resolver

from tproxy.core.fields import ConfigError
from tproxy.core.inject.jsonpatch import apply

_OLD, _PLAIN, _TEXT = Resolver(), (True, False), "tag:yaml.org,2002:str"  # of YAML 1.1
_LIST = re.compile(r"^( *)[^\s#-][^\n]*:[ \t]*(?:#[^\n]*)?\n(?:[ \t]*(?:#[^\n]*)?\n)*( *)(- +)", re.MULTILINE)
_MAP = re.compile(r"^[^\s#-][^\n]*:[ \t]*\n( +)[^\s#-]", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """A document twice: as ruamel keeps it, and as plain data."""

    yaml: YAML
    kept: Any
    plain: Any
    aliased: bool

    @classmethod
    def load(cls, text: str, name: str) -> RoundTrip:
        """ConfigError names file and line."""
        yaml = YAML()
        yaml.preserve_quotes = True
        yaml.width = 1 << 30  # never fold what was one line
        lists, maps = _LIST.search(text), _MAP.search(text)  # the first one is taken for the house style
        offset = len(lists[2]) - len(lists[1]) if lists else 0
        dash = len(lists[3]) if lists else 2
        yaml.indent(mapping=len(maps[1]) if maps else 2, sequence=offset + dash, offset=offset)
        try:
            aliased = any(isinstance(event, AliasEvent) for event in YAML().parse(io.StringIO(text)))
            kept = yaml.load(text)
        except MarkedYAMLError as error:
            line = f"line {error.problem_mark.line + 1}" if error.problem_mark else ""
            raise ConfigError(name, line, (error.problem or "is not YAML").splitlines()[0]) from error
        except (YAMLError, ValueError, RecursionError) as error:
            raise ConfigError(name, "", "is not YAML") from error
        return cls(yaml, kept, _plain(kept), aliased)

    def apply(self, operations: Iterable[dict[str, Any]]) -> str:
        """The text of the changed document. What an alias shares must not be changed twice, so it is written out."""
        ours = [{**operation, "value": _quoted(operation.get("value"))} for operation in operations]
        document = apply(_unshared(self.kept) if self.aliased else self.kept, ours)
        out = io.StringIO()
        self.yaml.dump(document, out)
        return out.getvalue()


def _plain(value: Any) -> Any:
    """Dictionaries, lists and scalars as JSON has them."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return value if value is None else str(value)


def _quoted(value: Any) -> Any:
    """Quotes for text that YAML 1.1, which kubectl reads, takes for something else: ``no``, ``y``, ``1:20``."""
    if isinstance(value, dict):
        return {key: _quoted(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_quoted(item) for item in value]
    return SingleQuotedScalarString(value) if isinstance(value, str) and _is_odd(value) else value


def _is_odd(text: str) -> bool:
    tag = _OLD.resolve(ScalarNode, text, _PLAIN)  # type: ignore[no-untyped-call] # types-PyYAML leaves it out
    return bool(tag != _TEXT) or text.lower() in ("y", "n")  # which Go's YAML takes for booleans, PyYAML not


def _unshared(value: Any) -> Any:
    """Mappings and lists of their own, with the scalars as they were written: 0644 must not become 644."""
    if isinstance(value, Mapping):
        return {key: _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value
