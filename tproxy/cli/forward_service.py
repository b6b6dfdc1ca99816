"""What ``tproxy forward setup``, ``status`` and ``remove`` do: kubectl, ip, systemctl and ss are asked, never imitated.

Messages go to stderr as k3d-manager's do; what systemctl and ss print goes to stdout.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from tproxy.core import ingress_forward as words
from tproxy.core.ingress_forward import Forward
from tproxy.core.socat import Target
from tproxy.kernel.errors import KernelError

SECONDS = 60.0  # for each program
_KLOG = re.compile(r"[EWI]\d{4} ")
PROC_VERSION = Path("/proc/version")


def run(args: argparse.Namespace) -> int:
    """One of the three."""
    forward = Forward.of(os.environ)
    does = {"setup": lambda: _setup(args, forward), "status": lambda: _status(forward)}
    return does.get(args.does, lambda: _remove(forward))()


def _say(lines: str | Iterable[str], level: str = "INFO") -> None:
    for line in [lines] if isinstance(lines, str) else lines:
        print(f"{level}: {line}", file=sys.stderr)


def _ask(argv: Sequence[str]) -> tuple[int, str, str]:
    """Exit code, output, and what went wrong in one line, without klog's lines before it."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=SECONDS, errors="replace", check=False)
    except FileNotFoundError:
        return 127, "", f"{argv[0]} is not installed"
    except (OSError, subprocess.TimeoutExpired) as error:
        return 126, "", f"{argv[0]}: {error}"
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip() and not _KLOG.match(line)]
    return done.returncode, done.stdout, "; ".join(lines)[:500] or f"{argv[0]} ended with {done.returncode}"


def _setup(args: argparse.Namespace, forward: Forward) -> int:
    if not forward.enabled:
        _say("Ingress forwarding disabled (K3S_INGRESS_FORWARD_ENABLED=0)")
        _say("To enable later, run: K3S_INGRESS_FORWARD_ENABLED=1 tproxy forward setup")
        return 0
    _say("Setting up k3s ingress port forwarding...")
    program = _program()
    target = Target.parse(args.target) if args.target else _target(forward)
    if program is None or target is None:
        return 1
    options = ["--proxy-protocol", args.proxy_protocol] if args.proxy_protocol else []
    line = words.command(program, forward.port, target, options)
    _say(words.detected(program, forward.port, target))
    calls = [["daemon-reload"], ["enable", forward.name], ["restart", forward.name]]
    if args.print:
        _say([f"Would write {forward.file} and call:", *(f"  systemctl {' '.join(call)}" for call in calls)])
        print(words.unit(line), end="")
        return 0
    if shutil.which("systemctl") is None:
        _say("systemctl is not installed: nothing was set up", "ERROR")
        _say(words.by_hand(line))
        return 1
    if not _installed(forward, words.unit(line), calls):
        _say(words.by_hand(line))
        return 1
    _say(words.configured(forward.port, target))
    hosts = args.host or words.HOSTS
    if words.is_wsl(PROC_VERSION.read_text()):
        _say("WSL detected - additional configuration may be needed for Windows access", "WARN")
        _say(words.wsl_hints(target, hosts))
    else:
        _say(words.hints(target, hosts))
    return 0


def _program() -> str | None:
    """Our own absolute path: the one we were called by, or the one on PATH."""
    called = sys.argv[0] if Path(sys.argv[0]).name == "tproxy" else "tproxy"
    found = shutil.which(called) or shutil.which("tproxy")
    if found is None:
        _say("Could not find the tproxy program: neither the one that was called nor one on PATH can be run", "ERROR")
    return found and str(Path(found).absolute())


def _target(forward: Forward) -> Target | None:
    code, said, trouble = _ask(words.NODEPORT)
    port = words.nodeport(said) if code == 0 else None
    if port is None:
        _say("Could not detect Istio IngressGateway HTTPS NodePort", "ERROR")
        if code == 0:
            trouble = f"kubectl named {said.strip()!r}" if said.strip() else "it has no port that is named https"
        _say(f"Is Istio deployed, and is its service of type NodePort or LoadBalancer? {trouble}", "ERROR")
        return None
    return words.target_of(forward.node or words.source_address(_ask(words.ROUTE)[1]), port)


def _installed(forward: Forward, unit: str, calls: Sequence[Sequence[str]]) -> bool:
    """Write and start it; what systemd does not take is taken back."""
    path = Path(forward.file)
    try:
        before = path.read_text() if path.exists() else None
    except OSError as error:
        raise KernelError(f"reading {path}", error.strerror, "run it with sudo") from error
    _write(path, unit)
    for call in calls:
        code, _, trouble = _ask(["systemctl", *call])
        if code == 0:
            continue
        _say(f"systemctl {' '.join(call)} failed ({code}): {trouble}", "ERROR")
        if call[0] != "restart":  # a service that is known and does not start yet is tried again by systemd
            path.unlink() if before is None else _write(path, before)
            _say(f"{path} is as it was before", "ERROR")
        return False
    return True


def _write(path: Path, text: str) -> None:
    """At once and whole, mode 0644."""
    fresh = path.with_name(f".{path.name}.new")
    try:
        fresh.write_text(text)
        fresh.chmod(0o644)
        fresh.replace(path)
    except OSError as error:
        with suppress(OSError):
            fresh.unlink()
        raise KernelError(
            f"writing {path}", error.strerror, "run it with sudo, or set K3S_INGRESS_SERVICE_FILE"
        ) from error


def _status(forward: Forward) -> int:
    _say("Ingress forwarding status:")
    print(flush=True)
    if not Path(forward.file).is_file():
        _say(f"Service file not found: {forward.file}", "WARN")
        _say(["Ingress forwarding is not configured", "Run: tproxy forward setup"])
        return 0
    _say(f"Service file: {forward.file} (exists)")
    if _ask(["systemctl", "is-active", "--quiet", forward.name])[0] == 0:
        _say("Status: ACTIVE")
    elif _ask(["systemctl", "is-enabled", "--quiet", forward.name])[0] == 0:
        _say("Status: ENABLED but not running", "WARN")
    else:
        _say("Status: INACTIVE", "WARN")
    print(flush=True)
    _say("Service details:")
    _, said, trouble = _ask(["systemctl", "status", forward.name, "--no-pager", "-l"])
    print(said, end="", flush=True)
    if not said:
        _say(trouble, "WARN")
    print(flush=True)
    _say("Port listeners:")
    code, said, trouble = _ask(["ss", "-tlnp"])
    lines = [line for line in said.splitlines() if f":{forward.port} " in line]
    print("".join(f"{line}\n" for line in lines), end="", flush=True)
    if not lines:
        _say(trouble if code else f"Port {forward.port} not listening", "WARN")
    return 0


def _remove(forward: Forward) -> int:
    _say("Removing k3s ingress port forwarding...")
    for asked, saying, call in (
        ("is-active", "Stopping", "stop"),
        ("is-enabled", "Disabling", "disable"),
    ):
        if _ask(["systemctl", asked, "--quiet", forward.name])[0] != 0:
            continue
        _say(f"{saying} service: {forward.name}")
        code, _, trouble = _ask(["systemctl", call, forward.name])
        if code != 0:
            _say(f"systemctl {call} {forward.name} failed ({code}): {trouble}", "ERROR")
            return 1
    path = Path(forward.file)
    if path.exists():
        _say(f"Removing service file: {path}")
        try:
            path.unlink()
        except OSError as error:
            raise KernelError(f"removing {path}", error.strerror, "run it with sudo") from error
    code, _, trouble = _ask(["systemctl", "daemon-reload"])
    if code != 0:
        _say(f"systemctl daemon-reload failed ({code}): {trouble}", "WARN")
    _say("Ingress port forwarding removed")
    return 0
