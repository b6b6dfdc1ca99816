"""What every command line has in common: its faults are one line with the nearest word, its numbers have bounds."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

from tproxy.core.fields import ConfigError

T = TypeVar("T")
_CHOICE = re.compile(r"invalid choice: '(.*?)' \(choose from (.*)\)")
_YEAR = 365 * 86_400.0


class Parser(argparse.ArgumentParser):
    """argparse's, without a page of usage before each fault; parsers of subcommands are of the same kind."""

    def error(self, message: str) -> NoReturn:
        """One line, the nearest word, and where to read on; exit code 2."""
        self.exit(2, f"{self.prog}: {message}{self._meant(message)}; see {self.prog} --help\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Nothing may be left over, and who is asked knows best what was meant."""
        found, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return found, rest

    def _meant(self, message: str) -> str:
        word, valid = message.rpartition(" ")[2].partition("=")[0], list(self._option_string_actions)
        if choice := _CHOICE.search(message):
            word, valid = choice[1], re.findall("'(.*?)'", choice[2])
        elif not message.startswith("unrecognized arguments"):
            return ""
        near = difflib.get_close_matches(word, valid, 1)
        return f"; did you mean {near[0]}?" if near else ""


def call(
    calls: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    does: str,
    examples: str,
    aliases: Sequence[str] = (),
) -> argparse.ArgumentParser:
    """A subcommand: what it does, in a line of its parent's help and atop its own, which ends with examples."""
    return calls.add_parser(
        name,
        aliases=aliases,
        help=does,
        description=f"{does[0].upper()}{does[1:]}.",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def option(name: str, parse: Callable[[str], T], text: str) -> T:
    """An option's text through a parser of the core; ConfigError names the option."""
    try:
        return parse(text)
    except ValueError as error:
        raise ConfigError("command line", name, str(error), text) from error


def seconds(text: str) -> float:
    """A time that passes, up to a year."""
    return _number(text, 0.001, _YEAR)


def seconds_or_none(text: str) -> float:
    """The same, or 0."""
    return _number(text, 0.0, _YEAR)


def count(text: str) -> int:
    """One at least."""
    return _whole(text, 1, 1_000_000_000)


def count_or_none(text: str) -> int:
    """The same, or 0."""
    return _whole(text, 0, 1_000_000_000)


def port(text: str) -> int:
    """Of TCP."""
    return _whole(text, 1, 65_535)


def port_or_none(text: str) -> int:
    """The same, or 0."""
    return _whole(text, 0, 65_535)


def _number(text: str, low: float, high: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"{text!r}: expected seconds, {low:g} to {high:.8g}")
    return value


def _whole(text: str, low: int, high: int) -> int:
    value = int(text) if re.fullmatch("[0-9]{1,10}", text) else -1
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, {low} to {high}")
    return value
