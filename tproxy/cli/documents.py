"""YAML in which no key may stand twice, from a file or a text; every fault names where, and the line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tproxy.core.fields import ConfigError


def read_yaml(path: str) -> Any:
    """What a YAML file holds. ConfigError names the file and the line, also when it holds more than one document."""
    return one_yaml(read_text(path), path)


def read_text(path: str) -> str:
    """A whole file in UTF-8. ConfigError names it."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(path, "", getattr(error, "strerror", None) or str(error)) from error


def one_yaml(text: str, where: str) -> Any:
    """The one document of a text."""
    found = documents(text, where)
    if len(found) > 1:
        raise ConfigError(where, "", f"holds {len(found)} documents, expected one")
    return found[0] if found else None


def documents(text: str, where: str) -> list[Any]:
    """All documents of a text."""
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
        return list(yaml.load_all(text, Loader))
    except yaml.MarkedYAMLError as error:  # without the line itself: it may be a key
        line = f"line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(where, line, error.problem or "is not YAML") from error
    except yaml.YAMLError as error:
        raise ConfigError(where, "", "is not YAML") from error
