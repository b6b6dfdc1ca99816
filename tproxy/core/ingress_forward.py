"""k3d-manager's port forward in front of Istio's ingress gateway: its settings, its systemd unit, its words.

PURE: text in, text out. Names, variables and sentences are those that scripts and people already know.

>>> Forward.of({}).file
'/etc/systemd/system/k3s-ingress-forward.service'
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tproxy.core.fields import ConfigError, parse_port
from tproxy.core.socat import Target

WHERE = "environment"
NAME = "k3s-ingress-forward"
_JSONPATH = 'jsonpath={.spec.ports[?(@.name=="https")].nodePort}'
NODEPORT = ("kubectl", "get", "svc", "-n", "istio-system", "istio-ingressgateway", "-o", _JSONPATH)
ROUTE = ("ip", "route", "get", "1.1.1.1")
HOSTS = ("jenkins.dev.local.me", "argocd.dev.local.me")
USAGE = """Usage: expose_ingress {setup|status|remove}

Actions:
  setup   - Configure and enable ingress port forwarding (default)
  status  - Show current forwarding status
  remove  - Disable and remove ingress port forwarding"""
UNIT = """[Unit]
Description=k3s Ingress Gateway HTTPS Port Forwarding
After=network-online.target k3s.service
Wants=network-online.target

[Service]
Type=simple
User=root
Restart=always
RestartSec=3
ExecStart={command}

[Install]
WantedBy=multi-user.target
"""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9:_.@-]{0,200}")
_SAFE = re.compile(r"[A-Za-z0-9_@+=:,./\[\]-]+")


@dataclass(frozen=True, slots=True)
class Forward:
    """What the environment asks for."""

    enabled: bool
    port: int
    name: str
    file: str
    node: str  # empty: to be found out

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Forward:
        """From K3S_INGRESS_FORWARD_ENABLED, _HTTPS_PORT, K3S_INGRESS_SERVICE_NAME, _FILE, K3S_NODE_IP and NODE_IP."""
        name = environment.get("K3S_INGRESS_SERVICE_NAME") or NAME
        if not _NAME.fullmatch(name):
            raise ConfigError(WHERE, "K3S_INGRESS_SERVICE_NAME", "expected the name of a systemd service", name)
        text = environment.get("K3S_INGRESS_FORWARD_HTTPS_PORT") or "443"
        try:
            port = parse_port(text)
        except ValueError as error:
            raise ConfigError(WHERE, "K3S_INGRESS_FORWARD_HTTPS_PORT", str(error), text) from None
        return cls(
            enabled=environment.get("K3S_INGRESS_FORWARD_ENABLED", "1") != "0",
            port=port,
            name=name.removesuffix(".service"),
            file=environment.get("K3S_INGRESS_SERVICE_FILE")
            or f"/etc/systemd/system/{name.removesuffix('.service')}.service",
            node=environment.get("K3S_NODE_IP") or environment.get("NODE_IP") or "",
        )


def nodeport(said: str) -> int | None:
    """What kubectl said, if it is a port."""
    try:
        return parse_port(said.strip())
    except ValueError:
        return None


def source_address(said: str) -> str:
    """The ``src`` of ``ip route get``; loopback where there is no route."""
    found = re.search(r"\bsrc (\S+)", said)
    return found[1] if found else "127.0.0.1"


def target_of(node: str, port: int) -> Target:
    """The NodePort, as an address that socat would take."""
    return Target.parse(f"TCP:[{node}]:{port}" if ":" in node else f"TCP:{node}:{port}")


def unit(command: Sequence[str]) -> str:
    """The unit file; the command's first word must be an absolute path, or systemd ends with 203/EXEC."""
    if not command[0].startswith("/"):
        raise ValueError(f"{command[0]!r} is not an absolute path")
    return UNIT.format(command=" ".join(_quoted(word) for word in command))


def _quoted(word: str) -> str:
    """systemd.service(5), command lines: specifiers and variables are doubled, other odd words stand in quotes."""
    word = word.replace("%", "%%").replace("$", "$$")
    if _SAFE.fullmatch(word):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def command(program: str, port: int, target: Target, options: Sequence[str] = ()) -> list[str]:
    """What listens: socat's two addresses, behind another program."""
    return [program, "forward", "run", f"TCP-LISTEN:{port},fork,reuseaddr", f"TCP:{target}", *options]


def is_wsl(version: str) -> bool:
    """Whether /proc/version is that of Windows' subsystem for Linux."""
    return "microsoft" in version.lower() or "wsl" in version.lower()


def detected(program: str, port: int, target: Target) -> list[str]:
    """What ``setup`` has found out."""
    return [
        "Detected configuration:",
        f"  tproxy path: {program}",
        f"  Istio HTTPS NodePort: {target.port}",
        f"  Node IP: {target.host}",
        f"  External HTTPS Port: {port}",
    ]


def configured(port: int, target: Target) -> list[str]:
    """What ``setup`` has done."""
    return [
        "Ingress port forwarding configured successfully",
        "",
        "Port forwarding active:",
        f"  External port {port} -> Istio IngressGateway {target}",
        "",
    ]


def hints(target: Target, hosts: Sequence[str] = HOSTS) -> list[str]:
    """How clients find the way in."""
    return [
        "Add these entries to /etc/hosts on client machines:",
        *(f"  {target.host} {host}" for host in hosts),
        "",
        "Then access services:",
        *(f"  https://{host}/" for host in hosts),
    ]


def wsl_hints(target: Target, hosts: Sequence[str] = HOSTS) -> list[str]:
    """The same where Windows is outside."""
    return [
        "",
        "To access from within WSL:",
        "  Add to /etc/hosts:",
        *(f"    127.0.0.1 {host}" for host in hosts),
        "",
        "To access from Windows host:",
        "  1. Get WSL IP: hostname -I",
        "  2. Add to C:\\Windows\\System32\\drivers\\etc\\hosts:",
        *(f"     <WSL-IP> {host}" for host in hosts),
        f"  3. Access via NodePort: https://{hosts[0]}:{target.port}/",
        "",
        "For port 443 access from Windows, see:",
        "  docs/architecture/ingress-port-forwarding.md#wsl-windows-access",
    ]


def by_hand(line: Sequence[str]) -> list[str]:
    """What works without systemd: WSL1, containers, and trying it out."""
    words = " ".join(line)
    return [
        "Without systemd, run it in the foreground, or with & in the background:",
        f"  sudo {words}",
        f"  sudo {words} &",
    ]
