"""Reading a configuration's mapping field by field: every fault names the file, field, value and the nearest valid one.

>>> Fields({"modee": "strict"}, "sidecar.yaml").finish()
Traceback (most recent call last):
tproxy.core.fields.ConfigError: sidecar.yaml: modee: unknown field
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


class ConfigError(ValueError):
    """A configuration that cannot be used: where, which field, which value, why, and the nearest valid one."""

    def __init__(self, where: str, field: str, why: str, value: object = None, valid: Iterable[str] = ()) -> None:
        word = field.rpartition(".")[2] if value is None else str(value)
        near = difflib.get_close_matches(word, list(valid), 1, 0.4)
        parts = [where, field, why if value is None else f"{_shown(value)}: {why}"]
        super().__init__(": ".join(part for part in parts if part) + (f"; did you mean {near[0]!r}?" if near else ""))


def _shown(value: object) -> str:
    """The value as the reader wrote it, shortened; a key pasted into the wrong field is not repeated."""
    text = repr(value)
    if "PRIVATE KEY" in text:
        return "(a private key)"
    return text if len(text) <= 80 else text[:77] + "..."


class Fields:
    """A mapping whose every key must be read exactly by name; what is left over at ``finish`` is an error."""

    def __init__(self, data: Any, where: str, path: str = "") -> None:
        if data is None:
            data = {}
        if not isinstance(data, Mapping):
            raise ConfigError(where, path, "expected a mapping (key: value)", data)
        self.data: Mapping[Any, Any] = data
        self.where, self.path, self.known = where, path, set[str]()

    def name(self, key: object) -> str:
        """The full name of a field, as in ``inbound.rules[0].ports``."""
        return f"{self.path}.{key}" if self.path else str(key)

    def error(self, key: object, why: str, value: object = None, valid: Iterable[str] = ()) -> ConfigError:
        """An error about one of our fields."""
        return ConfigError(self.where, self.name(key), why, value, valid)

    def raw(self, key: str, default: Any = None) -> Any:
        """The value as it stands; an explicit null is the default."""
        self.known.add(key)
        value = self.data.get(key)
        return default if value is None else value

    def text(self, key: str, default: str = "") -> str:
        """A string."""
        value = self.raw(key, default)
        if not isinstance(value, str):
            raise self.error(key, "expected text", value)
        return value

    def number(self, key: str, default: float, low: float, high: float) -> float:
        """A number within bounds, both included."""
        value = self.raw(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise self.error(key, f"expected a number from {low:g} to {high:g}", value)
        return value

    def integer(self, key: str, default: int, low: int, high: int) -> int:
        """A whole number within bounds, both included."""
        value = self.number(key, default, low, high)
        if value != int(value):
            raise self.error(key, "expected a whole number", value)
        return int(value)

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self.raw(key, default)
        if not isinstance(value, bool):
            raise self.error(key, "expected true or false", value)
        return value

    def choice(self, key: str, default: str, valid: Iterable[str]) -> str:
        """One of a few words."""
        value, words = self.raw(key, default), list(valid)
        if value not in words:
            raise self.error(key, f"expected one of {', '.join(words)}", value, words)
        return str(value)

    def items(self, key: str, parse: Callable[[Any], T], default: Iterable[Any] = ()) -> tuple[T, ...]:
        """A list (or a comma-separated text, as annotations have it), each item through ``parse``."""
        value = self.raw(key, list(default))
        if isinstance(value, str):
            value = [part.strip() for part in value.split(",") if part.strip()]
        if isinstance(value, int) and not isinstance(value, bool):
            value = [value]
        if not isinstance(value, list):
            raise self.error(key, "expected a list", value)
        return tuple(self._item(f"{key}[{index}]", parse, item) for index, item in enumerate(value))

    def _item(self, key: str, parse: Callable[[Any], T], item: Any) -> T:
        try:
            return parse(item)
        except ConfigError:
            raise
        except (ValueError, TypeError) as error:
            raise self.error(key, str(error), item) from error

    def parsed(self, key: str, parse: Callable[[Any], T], default: Any) -> T:
        """One value through ``parse``, whose ValueError becomes ours."""
        return self._item(key, parse, self.raw(key, default))

    def inner(self, key: str) -> Fields:
        """A nested mapping."""
        return Fields(self.raw(key, {}), self.where, self.name(key))

    def each(self, key: str) -> list[Fields]:
        """A list of mappings."""
        value = self.raw(key, [])
        if not isinstance(value, list):
            raise self.error(key, "expected a list", value)
        return [Fields(item, self.where, f"{self.name(key)}[{index}]") for index, item in enumerate(value)]

    def finish(self) -> None:
        """Refuse what nobody read: a misspelt field is never ignored."""
        for key in self.data:
            if key not in self.known:
                raise ConfigError(self.where, self.name(key), "unknown field", valid=self.known)
