"""``tproxy demo``: two pods in network namespaces, mTLS between them, and who is refused. Needs root."""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

from tproxy.cli import Verbs
from tproxy.kernel.errors import KernelError

TOOLS = {"nginx": "nginx-light", "curl": "curl", "openssl": "openssl", "tcpdump": "tcpdump", "nsenter": "util-linux"}


def register(verbs: Verbs) -> None:
    """Add the verb."""
    parser = verbs.add_parser("demo", help="show it all in network namespaces", description=__doc__)
    parser.add_argument("--report", default="build/demo.json", metavar="FILE", help="where the checks go as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Play; 1 if a check failed."""
    if os.geteuid() != 0:
        raise KernelError("making network namespaces", "not root", "run it with sudo")
    missing = sorted(package for tool, package in TOOLS.items() if shutil.which(tool) is None)
    if missing:
        raise KernelError(
            "looking for programs", f"{', '.join(missing)} missing", f"apt-get install {' '.join(missing)}"
        )
    from tproxy.demo.story import play

    return play(Path(args.report))
