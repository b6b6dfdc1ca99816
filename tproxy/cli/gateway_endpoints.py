"""``tproxy gateway endpoints``: who a running gateway asks, and whom it leaves out for failing; istioctl's columns."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

from tproxy.cli.ask import page
from tproxy.cli.usage import port

COLUMNS = ("ENDPOINT", "STATUS", "OUTLIER CHECK", "CLUSTER")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Whom to ask."""
    parser.add_argument("--port", type=port, metavar="PORT", default=15000, help="its --admin-port (default: 15000)")
    parser.add_argument("--json", action="store_true", help="as JSON")


def endpoints(args: argparse.Namespace) -> int:
    """A table of all endpoints; 1 if one is left out."""
    found = page(args.port, "/clusters?format=json", "--port", "gateway")
    if args.json:
        print(json.dumps(found, indent=2))
        rows = list(_rows(found))
    else:
        rows = list(_rows(found))
        for row in (COLUMNS, *rows):
            print(f"{row[0]:<24}  {row[1]:<9}  {row[2]:<13}  {row[3]}")
    return int(any(row[2] != "OK" for row in rows))


def _rows(found: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    for cluster in found["cluster_statuses"]:
        for host in cluster["host_statuses"]:
            where, health = host["address"]["socket_address"], host["health_status"]
            address = f"[{where['address']}]" if ":" in where["address"] else where["address"]
            outlier = "FAILED" if health.get("failed_outlier_check") else "OK"
            yield f"{address}:{where['port_value']}", health["eds_health_status"], outlier, cluster["name"]
