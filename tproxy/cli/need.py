"""What ``demo`` and ``bench`` need before they begin."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping

from tproxy.kernel.errors import KernelError


def root_and_programs(programs: Mapping[str, str]) -> None:
    """KernelError unless we are root and each program (name to Debian package) is there."""
    if os.geteuid() != 0:
        raise KernelError("making network namespaces", "not root", "run it with sudo")
    missing = sorted(package for program, package in programs.items() if shutil.which(program) is None)
    if missing:
        advice = f"apt-get install {' '.join(missing)}"
        raise KernelError("looking for programs", f"{', '.join(missing)} missing", advice)
