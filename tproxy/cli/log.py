"""How messages and records look: one line each, as text or as JSON."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tproxy.core.record import Record

log = logging.getLogger("tproxy")


def add_log_options(parser: argparse.ArgumentParser) -> None:
    """The options of every verb that runs until it is stopped."""
    parser.add_argument(
        "-v", metavar="LEVEL", nargs="?", const="4", default="2", help="klog verbosity: 4 and up is debug"
    )
    parser.add_argument("--log-format", choices=("text", "json"), default="text", help="how records and messages look")


def record_writer(form: str) -> Callable[[Record], None]:
    """Records to stdout."""
    out = sys.stdout

    def write(record: Record) -> None:
        out.write((record.json() if form == "json" else record.text()) + "\n")
        out.flush()

    return write


class _Json(logging.Formatter):
    """A message as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Time, level, message, and the traceback if there is one."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        line = {"time": stamp, "level": record.levelname.lower(), "message": record.getMessage()}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def start_logging(args: argparse.Namespace) -> None:
    """Messages to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    plain = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(_Json() if args.log_format == "json" else plain)
    log.addHandler(handler)
    log.setLevel(logging.DEBUG if args.v.isdecimal() and int(args.v) >= 4 else logging.INFO)
