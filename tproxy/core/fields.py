"""Reading a configuration's mapping field by field: every fault names the file, field, value and the nearest valid one.

>>> inbound = Fields({"modee": "strict"}, "sidecar.yaml")
>>> inbound.choice("mode", "strict", ["strict", "permissive"])
'strict'
>>> inbound.finish()
Traceback (most recent call last):
tproxy.core.fields.ConfigError: sidecar.yaml: modee: unknown field; did you mean 'mode'?
"""

from __future__ import annotations

import base64
import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")
_DIGITS = re.compile("[0-9]{1,10}")
_WORD = 256  # characters of what may be a misspelt word: comparing takes longer the longer they are
_SECRET = "PRIVATE KEY"  # RFC 7468: in the first line of every kind of PEM key
_COMPARED = 500
_BASE64 = "LS0tLS1CRUdJTi"  # how "-----BEGIN " begins, as Secrets have it


class ConfigError(ValueError):
    """A configuration that cannot be used: where, which field, which value, why, and the nearest valid one."""

    def __init__(self, where: str, field: str, why: str, value: object = None, valid: Iterable[str] = ()) -> None:
        if is_key(value):  # pasted into the wrong field: neither it nor what a parser said of it is repeated
            value, why, valid = None, "a private key does not belong here", ()
        said = (why,) if value is None else (_short(repr(value), 80), _short(why, 400))
        word = field.rpartition(".")[2] if value is None else str(value)
        super().__init__(": ".join(part for part in (where, field, *said) if part) + nearest(word, valid))


def is_key(value: object) -> bool:
    """Whether a private key was pasted there, as PEM or as its base64."""
    text = str(value)
    at = text.find(_BASE64)
    if _SECRET in text or at < 0:
        return _SECRET in text
    try:
        return _SECRET.encode() in base64.b64decode(text[at : at + 64])
    except ValueError:
        return True  # cut off, and not to be repeated either


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."


def nearest(word: str, valid: Iterable[str], cutoff: float = 0.4) -> str:
    """What was meant, perhaps; case does not matter, as Istio writes STRICT where we write strict. Of very many names
    none is proposed: comparing takes 10 us each."""
    if len(word) > _WORD:
        return ""
    names = {name.lower(): name for name in sorted(valid)}
    near = difflib.get_close_matches(word.lower(), names, 1, cutoff) if len(names) <= _COMPARED else ()
    return f"; did you mean {names[near[0]]!r}?" if near else ""


class Fields:
    """A mapping whose every key must be read exactly by name; what is left over at ``finish`` is an error."""

    def __init__(self, data: Any, where: str, path: str = "", lines: Mapping[str, int] | None = None) -> None:
        self.where, self.path, self.known = where, path, set[str]()
        self.lines: Mapping[str, int] = lines or {}  # of fields by full name, if the file's are known
        if data is None:
            data = {}
        if not isinstance(data, Mapping):
            raise ConfigError(self.place(path), path, "expected a mapping (key: value)", data)
        self.data: Mapping[Any, Any] = data

    def name(self, key: object) -> str:
        """The full name of a field, as in ``inbound.rules[0].ports``, printable whatever stands in the file."""
        text = str(key) if str(key).isprintable() else repr(key)
        text = "(a private key)" if is_key(text) else _short(text, 80)
        return f"{self.path}.{text}" if self.path else text

    def place(self, name: str) -> str:
        """The file, and the line of a field, or of what should hold it, if it is known."""
        while name and name not in self.lines:
            name = name[: max(name.rfind("."), name.rfind("["), 0)]
        return f"{self.where}:{self.lines[name]}" if name in self.lines else self.where

    def error(self, key: object, why: str, value: object = None, valid: Iterable[str] = ()) -> ConfigError:
        """An error about one of our fields."""
        return ConfigError(self.place(self.name(key)), self.name(key), why, value, valid)

    def raw(self, key: str, default: Any = None) -> Any:
        """The value as it stands; an explicit null is the default."""
        self.known.add(key)
        value = self.data.get(key)
        return default if value is None else value

    def text(self, key: str, default: str = "") -> str:
        """One line of text: a name or a path, and never a pasted key."""
        value = self.raw(key, default)
        if not isinstance(value, str) or not value.isprintable() or is_key(value):
            raise self.error(key, "expected one line of text", value)
        return value

    def number(self, key: str, default: float, low: float, high: float) -> float:
        """A number within bounds, both included."""
        value = self.raw(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise self.error(key, f"expected a number from {low} to {high}", value)
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
        value, words = self.raw(key, default), [str(word) for word in valid]
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

    def some(self, key: str, parse: Callable[[Any], T]) -> tuple[T, ...]:
        """A list that may be left out but not be empty: an empty condition would hold for everyone."""
        found = self.items(key, parse)
        if not found and self.raw(key) is not None:
            raise self.error(key, "is empty; leave it out to mean anyone")
        return found

    def _item(self, key: str, parse: Callable[[Any], T], item: Any) -> T:
        try:
            return parse(item)
        except ValueError as error:
            raise self.error(key, str(error), item) from None  # its cause may repeat a pasted key

    def parsed(self, key: str, parse: Callable[[Any], T], default: Any) -> T:
        """One value through ``parse``, whose ValueError becomes ours."""
        return self._item(key, parse, self.raw(key, default))

    def inner(self, key: str) -> Fields:
        """A nested mapping."""
        return Fields(self.raw(key, {}), self.where, self.name(key), self.lines)

    def each(self, key: str) -> list[Fields]:
        """A list of mappings."""
        value = self.raw(key, [])
        if not isinstance(value, list):
            raise self.error(key, "expected a list", value)
        if None in value:  # a stray dash; as an empty mapping it would be a rule that allows everyone
            raise self.error(f"{key}[{value.index(None)}]", "is empty; expected a mapping (key: value)")
        return [Fields(item, self.where, f"{self.name(key)}[{n}]", self.lines) for n, item in enumerate(value)]

    def finish(self) -> None:
        """Refuse what nobody read: a misspelt field is never ignored."""
        for key in self.data:
            if key not in self.known:
                raise self.error(key, "unknown field", valid=self.known)


def parse_port(value: Any) -> int:
    """A TCP port, 1-65535, as a number or its text."""
    return parse_whole(value, "a port", 1, 65535)


def parse_whole(value: Any, what: str, low: int, high: int) -> int:
    """A whole number or its text; ValueError says what it should have been."""
    number = int(value) if isinstance(value, str) and _DIGITS.fullmatch(value) else value
    if isinstance(number, bool) or not isinstance(number, int) or not low <= number <= high:
        raise ValueError(f"expected {what}, {low} to {high}")
    return number


def text_of(parse: Callable[[str], T]) -> Callable[[Any], T]:
    """A parser of text that refuses other types first, with a sentence."""

    def checked(value: Any) -> T:
        if not isinstance(value, str):
            raise ValueError("expected text")
        return parse(value)

    return checked
