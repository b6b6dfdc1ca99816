"""What ``make guest`` runs inside: is our BPF accepted by this verifier, exact on this kernel, and unnoticed?

The last line sums up, as it was seen. The exit code is 0 if the object loads, both self-tests are exact, the tests pass
and ``tproxy check`` finds nothing bad. That ``auto`` turns itself off where an application would notice is no failure.
"""

from __future__ import annotations

import platform
import subprocess
import sys

from guest import SEEN
from tproxy.core.config import Config
from tproxy.kernel.errors import KernelError
from tproxy.kernel.libbpf import Program
from tproxy.kernel.selftest import interrupted, miscounted, open_shortcut, prove
from tproxy.kernel.sockmap import OBJECT, Off, Shortcut

CONFIG = Config.parse({}, "guest")
PINS = "/sys/fs/bpf/guest"
TESTS = ("tests/test_sockmap.py", "tests/test_sockmap_pods.py")


def main() -> int:
    """Everything, whatever fails before."""
    loads, said = verifier()
    exact, found = self_test() if loads else (False, [])
    tests, last = pytest()
    checked, codes = check()
    parts = [said, *found, f"{' and '.join(TESTS)}: {last}", codes]
    print(f"{SEEN}{platform.release()}: {'; '.join(parts)}", flush=True)
    return 0 if loads and exact and tests and checked else 1


def verifier() -> tuple[bool, str]:
    """By our own loader; where it is refused, bpftool shows the verifier's words."""
    try:
        Program(OBJECT).close()
    except KernelError as error:
        subprocess.run(["bpftool", "-d", "prog", "loadall", OBJECT, PINS], check=False)
        return False, f"the verifier REFUSES {OBJECT.name}: {error}"
    return True, f"the verifier accepts {OBJECT.name}"


def self_test() -> tuple[bool, list[str]]:
    """Whether both ways are exact; then each thing that an application could notice, and what ``auto`` makes of it."""
    faults, found = [], []
    for both in (False, True):
        shortcut = Shortcut(CONFIG.marks, both)
        faults.append(prove(shortcut))
        if not both:
            found = [why for why in (miscounted(shortcut), interrupted(shortcut)) if why]
        shortcut.close()
    made = open_shortcut(CONFIG)
    if not isinstance(made, Off):
        made.close()
    words = [
        *(
            f"{name}: {fault or 'exact'}"
            for name, fault in zip(("what applications send", "both"), faults, strict=True)
        ),
        f"applications notice: {', and '.join(found) or 'nothing'}",
        f"fast.sockmap auto is {'off' if isinstance(made, Off) else 'on'}",
    ]
    return not any(faults), words


def pytest() -> tuple[bool, str]:
    """The tests of the short cut, a line for each as it ends, and the last line of their report."""
    argv = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *TESTS]
    last = "no report"
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line.strip(" =\n") or last
    return process.returncode == 0, last


def check() -> tuple[bool, str]:
    """The capture rules by this kernel's nftables, and ``tproxy check`` over all of it."""
    verbs = ("init", "check")
    codes = [subprocess.run([sys.executable, "-m", "tproxy", verb], check=False).returncode for verb in verbs]
    words = (f"tproxy {verb}: exit code {code}" for verb, code in zip(verbs, codes, strict=True))
    return not any(codes), ", ".join(words)


if __name__ == "__main__":
    sys.exit(main())
