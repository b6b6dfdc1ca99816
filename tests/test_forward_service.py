"""``tproxy forward setup``, ``status``, ``remove``: kubectl and systemctl are scripts that record their calls."""

from __future__ import annotations

import shutil
import stat
import subprocess
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.gateway import TPROXY
from tproxy.core import ingress_forward

UNIT_LINES = (
    "Description=k3s Ingress Gateway HTTPS Port Forwarding",
    "After=network-online.target k3s.service",
    "Wants=network-online.target",
    "Type=simple",
    "User=root",
    "Restart=always",
    "RestartSec=3",
    "WantedBy=multi-user.target",
)
NO_SYSTEMD = 'echo "System has not been booted with systemd as init system (PID 1). Can\'t operate." >&2; exit 1'


@dataclass
class Machine:
    """What a host offers: programs on PATH, environment, a place for the unit."""

    folder: Path

    @property
    def unit(self) -> Path:
        return self.folder / "units" / "k3s-ingress-forward.service"

    @property
    def calls(self) -> list[str]:
        log = self.folder / "calls"
        return log.read_text().splitlines() if log.exists() else []

    def program(self, name: str, body: str = "") -> None:
        """A script that records its words and does this."""
        path = self.folder / "bin" / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >> {self.folder}/calls\n{textwrap.dedent(body)}\n')
        path.chmod(0o755)

    def real(self, name: str) -> None:
        """The program of this machine."""
        found = shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin")
        assert found, name
        (self.folder / "bin" / name).symlink_to(found)

    def run(self, *argv: str, before: tuple[str, ...] = (), **environment: str) -> subprocess.CompletedProcess[str]:
        env = {"PATH": str(self.folder / "bin"), "K3S_INGRESS_SERVICE_FILE": str(self.unit), **environment}
        (self.folder / "calls").unlink(missing_ok=True)
        line = [*before, TPROXY, "forward", *argv]
        return subprocess.run(line, capture_output=True, text=True, timeout=30, env=env, check=False)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """With Istio's gateway on NodePort 32653 and a systemd that obeys."""
    made = Machine(tmp_path)
    (tmp_path / "bin").mkdir()
    made.unit.parent.mkdir()
    made.program("kubectl", "printf 32653")
    made.program("systemctl")
    return made


def setup(machine: Machine, *options: str, **environment: str) -> str:
    done = machine.run("setup", *options, K3S_NODE_IP="10.211.55.14", **environment)
    assert done.returncode == 0 and done.stdout == "", done
    return done.stderr


def test_000_01_the_unit_file_is_the_one_people_know(machine: Machine) -> None:
    setup(machine)
    lines = machine.unit.read_text().splitlines()
    assert [line for line in UNIT_LINES if line not in lines] == []
    assert stat.S_IMODE(machine.unit.stat().st_mode) == 0o644
    assert f"ExecStart={TPROXY} forward run TCP-LISTEN:443,fork,reuseaddr TCP:10.211.55.14:32653" in lines
    assert TPROXY.startswith("/")
    assert ingress_forward.Forward.of({}).file == "/etc/systemd/system/k3s-ingress-forward.service"


def test_000_01_systemd_finds_nothing_wrong_with_it(machine: Machine) -> None:
    setup(machine, "--proxy-protocol", "v2")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", machine.unit], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_000_01_systemd_would_complain_of_a_program_that_is_not_there(machine: Machine) -> None:
    """So the test above can fail; it is the bug that the row names, 203/EXEC."""
    machine.unit.write_text(ingress_forward.unit(["/usr/bin/no-such-socat", "a"]))
    argv = ["systemd-analyze", "verify", "--man=no", machine.unit]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0 and "no-such-socat" in done.stderr


@given(st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1, max_size=20))
def test_000_01_a_word_of_the_command_line_cannot_become_two_or_a_variable(word: str) -> None:
    line = ingress_forward.unit([f"/{word}", word]).split("ExecStart=")[1].split("\n")[0]
    bare = line.replace("$$", "").replace("%%", "").replace("\\\\", "").replace('\\"', "")
    assert "$" not in bare and "%" not in bare and bare.count('"') % 2 == 0
    assert (" " in word) <= ('"' in line)


def test_000_03_setup_says_what_it_found_calls_systemctl_and_gives_hints(machine: Machine) -> None:
    said = setup(machine)
    assert said.splitlines() == [
        "INFO: Setting up k3s ingress port forwarding...",
        "INFO: Detected configuration:",
        f"INFO:   tproxy path: {TPROXY}",
        "INFO:   Istio HTTPS NodePort: 32653",
        "INFO:   Node IP: 10.211.55.14",
        "INFO:   External HTTPS Port: 443",
        "INFO: Ingress port forwarding configured successfully",
        "INFO: ",
        "INFO: Port forwarding active:",
        "INFO:   External port 443 -> Istio IngressGateway 10.211.55.14:32653",
        "INFO: ",
        "INFO: Add these entries to /etc/hosts on client machines:",
        "INFO:   10.211.55.14 jenkins.dev.local.me",
        "INFO:   10.211.55.14 argocd.dev.local.me",
        "INFO: ",
        "INFO: Then access services:",
        "INFO:   https://jenkins.dev.local.me/",
        "INFO:   https://argocd.dev.local.me/",
    ]
    assert [call for call in machine.calls if call.startswith("systemctl")] == [
        "systemctl daemon-reload",
        "systemctl enable k3s-ingress-forward",
        "systemctl restart k3s-ingress-forward",
    ]


def test_000_03_enable_is_setup_and_disable_is_remove(machine: Machine) -> None:
    assert machine.run("enable").returncode == 0 and machine.unit.exists()
    assert machine.run("disable").returncode == 0 and not machine.unit.exists()


def test_000_03_print_shows_the_unit_and_touches_nothing(machine: Machine) -> None:
    done = machine.run("setup", "--print", "--host", "a.example", K3S_NODE_IP="10.0.0.1")
    assert done.returncode == 0 and "ExecStart=" in done.stdout and UNIT_LINES[0] in done.stdout
    assert "systemctl restart k3s-ingress-forward" in done.stderr
    assert not machine.unit.exists() and not [call for call in machine.calls if call.startswith("systemctl")]


def test_000_03_names_of_ones_own_stand_in_the_hints(machine: Machine) -> None:
    assert "INFO:   10.211.55.14 shop.example" in setup(machine, "--host", "shop.example")


def test_000_04_the_nodeport_is_asked_of_kubectl_by_the_name_https(machine: Machine) -> None:
    setup(machine)
    asked = (
        'kubectl get svc -n istio-system istio-ingressgateway -o jsonpath={.spec.ports[?(@.name=="https")].nodePort}'
    )
    assert machine.calls[0] == asked


@pytest.mark.parametrize(
    ("kubectl", "said"),
    [
        ("", "it has no port that is named https"),
        ("printf none", "kubectl named 'none'"),
        ("printf 70000", "kubectl named '70000'"),
        ("echo 'Error from server (NotFound): services \"istio-ingressgateway\" not found' >&2; exit 1", "NotFound"),
        ("printf 32653; echo 'E1121 klog' >&2; echo refused >&2; exit 1", "LoadBalancer? refused"),
        (None, "kubectl is not installed"),
    ],
)
def test_000_04_without_a_nodeport_setup_says_so_and_ends_with_1(
    machine: Machine, kubectl: str | None, said: str
) -> None:
    (machine.folder / "bin" / "kubectl").unlink()
    if kubectl is not None:
        machine.program("kubectl", kubectl)
    done = machine.run("setup", K3S_NODE_IP="10.0.0.1")
    assert done.returncode == 1
    assert "ERROR: Could not detect Istio IngressGateway HTTPS NodePort\n" in done.stderr
    assert said in done.stderr
    assert not machine.unit.exists() and not [call for call in machine.calls if call.startswith("systemctl")]


def test_000_04_a_target_that_is_named_needs_no_kubectl(machine: Machine) -> None:
    (machine.folder / "bin" / "kubectl").unlink()
    setup(machine, "--target", "TCP:192.0.2.1:8443")
    assert "TCP:192.0.2.1:8443" in machine.unit.read_text()


@pytest.mark.parametrize(
    ("systemctl", "said"),
    [
        ("echo '● details'", "INFO: Status: ACTIVE"),
        ('[ "$1" = is-enabled ]', "WARN: Status: ENABLED but not running"),
        ("exit 3", "WARN: Status: INACTIVE"),
    ],
)
def test_000_05_status_says_active_enabled_or_inactive(machine: Machine, systemctl: str, said: str) -> None:
    setup(machine)
    machine.program("systemctl", systemctl)
    machine.program("ss", "echo 'LISTEN 0 5 0.0.0.0:4430 0.0.0.0:*'")
    done = machine.run("status")
    assert done.returncode == 0
    assert f"INFO: Service file: {machine.unit} (exists)" in done.stderr
    assert [line for line in done.stderr.splitlines() if "Status:" in line] == [said]
    assert "WARN: Port 443 not listening" in done.stderr
    assert "systemctl status k3s-ingress-forward --no-pager -l" in machine.calls
    assert ("● details" in done.stdout) == ("ACTIVE" in said.split())


def test_000_05_status_shows_who_listens(machine: Machine) -> None:
    setup(machine)
    line = 'LISTEN 0 4096 *:443 *:* users:(("tproxy",pid=7,fd=8))'
    machine.program("ss", f"echo 'LISTEN 0 5 0.0.0.0:80 0.0.0.0:*'\necho '{line}'")
    done = machine.run("status")
    assert line in done.stdout and ":80 " not in done.stdout and "not listening" not in done.stderr
    assert "ss -tlnp" in machine.calls


def test_000_05_status_without_a_service_file_says_so(machine: Machine) -> None:
    done = machine.run("status")
    assert done.returncode == 0
    assert f"WARN: Service file not found: {machine.unit}\n" in done.stderr
    assert "INFO: Ingress forwarding is not configured\n" in done.stderr


def test_000_05_status_works_without_systemctl_and_ss(machine: Machine) -> None:
    setup(machine)
    (machine.folder / "bin" / "systemctl").unlink()
    done = machine.run("status")
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert "systemctl is not installed" in done.stderr and "ss is not installed" in done.stderr


def test_000_06_remove_stops_disables_and_removes_and_may_be_said_twice(machine: Machine) -> None:
    """A cluster's destroyer calls it blindly."""
    setup(machine)
    done = machine.run("remove")
    assert done.returncode == 0 and not machine.unit.exists()
    assert done.stderr.splitlines() == [
        "INFO: Removing k3s ingress port forwarding...",
        "INFO: Stopping service: k3s-ingress-forward",
        "INFO: Disabling service: k3s-ingress-forward",
        f"INFO: Removing service file: {machine.unit}",
        "INFO: Ingress port forwarding removed",
    ]
    assert [call for call in machine.calls if "--quiet" not in call] == [
        "systemctl stop k3s-ingress-forward",
        "systemctl disable k3s-ingress-forward",
        "systemctl daemon-reload",
    ]
    machine.program("systemctl", '[ "$1" = daemon-reload ]')
    again = machine.run("remove")
    assert again.returncode == 0 and again.stderr.endswith("INFO: Ingress port forwarding removed\n")


def test_000_06_a_service_that_cannot_be_stopped_keeps_its_file(machine: Machine) -> None:
    setup(machine)
    machine.program("systemctl", '[ "$1" = stop ] && { echo "Access denied" >&2; exit 4; }; exit 0')
    done = machine.run("remove")
    assert done.returncode == 1 and machine.unit.exists()
    assert "ERROR: systemctl stop k3s-ingress-forward failed (4): Access denied" in done.stderr


@pytest.mark.parametrize("action", ["restart", "expose", "statu", None])
def test_000_07_an_unknown_action_gets_the_usage_and_1(machine: Machine, action: str | None) -> None:
    done = machine.run(*([action] if action else []))
    assert done.returncode == 1 and done.stdout.startswith("Usage: expose_ingress {setup|status|remove}\n")
    assert machine.calls == []


def test_000_08_disabled_by_the_environment_it_does_nothing_and_says_how_to_enable(machine: Machine) -> None:
    done = machine.run("setup", K3S_INGRESS_FORWARD_ENABLED="0")
    assert done.returncode == 0 and machine.calls == [] and not machine.unit.exists()
    assert done.stderr.splitlines() == [
        "INFO: Ingress forwarding disabled (K3S_INGRESS_FORWARD_ENABLED=0)",
        "INFO: To enable later, run: K3S_INGRESS_FORWARD_ENABLED=1 tproxy forward setup",
    ]


def test_000_08_port_name_and_file_come_from_the_environment(machine: Machine) -> None:
    unit = machine.folder / "other.service"
    environment = {"K3S_INGRESS_FORWARD_HTTPS_PORT": "8443", "K3S_INGRESS_SERVICE_NAME": "custom-ingress-forward"}
    said = setup(machine, **environment, K3S_INGRESS_SERVICE_FILE=str(unit))
    assert "TCP-LISTEN:8443,fork,reuseaddr" in unit.read_text()
    assert "INFO:   External HTTPS Port: 8443" in said and "INFO:   External port 8443 -> " in said
    assert "systemctl restart custom-ingress-forward" in machine.calls
    found = ingress_forward.Forward.of({"K3S_INGRESS_SERVICE_NAME": "custom-ingress-forward"})
    assert found.file == "/etc/systemd/system/custom-ingress-forward.service"


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"K3S_INGRESS_FORWARD_HTTPS_PORT": "https"}, "K3S_INGRESS_FORWARD_HTTPS_PORT: 'https': expected a port"),
        ({"K3S_INGRESS_SERVICE_NAME": "../x"}, "K3S_INGRESS_SERVICE_NAME: '../x': expected the name"),
        ({"K3S_NODE_IP": "10.0.0.1 -x"}, "expected a host's name or address"),
    ],
)
def test_000_08_a_wrong_variable_is_named(machine: Machine, environment: dict[str, str], said: str) -> None:
    done = machine.run("setup", **environment)
    assert done.returncode == 2 and said in done.stderr and not machine.unit.exists()


NODE = "set -e; ip link add d0 type veth peer name d1; ip addr add 192.0.2.7/24 dev d0; "
NODE += 'ip link set d1 up; ip link set d0 up; ip route add default via 192.0.2.1; exec "$@"'


@pytest.mark.parametrize(
    ("network", "environment", "address"),
    [
        (NODE, {"K3S_NODE_IP": "10.0.0.1", "NODE_IP": "10.0.0.2"}, "10.0.0.1"),
        (NODE, {"NODE_IP": "10.0.0.2"}, "10.0.0.2"),
        (NODE, {}, "192.0.2.7"),
        ('exec "$@"', {}, "127.0.0.1"),
        (NODE, {"K3S_NODE_IP": "fd00::7"}, "[fd00::7]"),
    ],
)
def test_000_08_the_node_is_named_or_has_the_address_of_the_default_route(
    machine: Machine, network: str, environment: dict[str, str], address: str
) -> None:
    """In a network of its own, with iproute2's ip."""
    for name in ("ip", "sh"):
        machine.real(name)
    before = ("/usr/bin/unshare", "--net", "/bin/sh", "-c", network, "sh")
    done = machine.run("setup", before=before, **environment)
    assert done.returncode == 0, done.stderr
    assert f"TCP:{address}:32653\n" in machine.unit.read_text()


def test_000_08_without_ip_the_node_is_loopback(machine: Machine) -> None:
    assert machine.run("setup").returncode == 0
    assert "TCP:127.0.0.1:32653\n" in machine.unit.read_text()


@pytest.mark.parametrize("version", ["5.15.90.1-microsoft-standard-WSL2", "4.4.0-19041-Microsoft", "6.1 (wsl)"])
def test_000_14_on_wsl_the_hints_are_those_for_windows(machine: Machine, version: str) -> None:
    """/proc/version is another file there, in a mount namespace of its own."""
    fake = machine.folder / "version"
    fake.write_text(f"Linux version {version}\n")
    mounted = f'/bin/mount --bind {fake} /proc/version && exec "$@"'
    before = ("/usr/bin/unshare", "--mount", "/bin/sh", "-c", mounted, "sh")
    done = machine.run("setup", before=before, K3S_NODE_IP="10.0.0.1")
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[11:] == [
        "WARN: WSL detected - additional configuration may be needed for Windows access",
        "INFO: ",
        "INFO: To access from within WSL:",
        "INFO:   Add to /etc/hosts:",
        "INFO:     127.0.0.1 jenkins.dev.local.me",
        "INFO:     127.0.0.1 argocd.dev.local.me",
        "INFO: ",
        "INFO: To access from Windows host:",
        "INFO:   1. Get WSL IP: hostname -I",
        "INFO:   2. Add to C:\\Windows\\System32\\drivers\\etc\\hosts:",
        "INFO:      <WSL-IP> jenkins.dev.local.me",
        "INFO:      <WSL-IP> argocd.dev.local.me",
        "INFO:   3. Access via NodePort: https://jenkins.dev.local.me:32653/",
        "INFO: ",
        "INFO: For port 443 access from Windows, see:",
        "INFO:   docs/architecture/ingress-port-forwarding.md#wsl-windows-access",
    ]


def test_000_14_without_systemctl_the_command_for_the_foreground_is_shown(machine: Machine) -> None:
    (machine.folder / "bin" / "systemctl").unlink()
    done = machine.run("setup", K3S_NODE_IP="10.0.0.1")
    assert done.returncode == 1 and not machine.unit.exists()
    assert "ERROR: systemctl is not installed: nothing was set up" in done.stderr
    assert f"sudo {TPROXY} forward run TCP-LISTEN:443,fork,reuseaddr TCP:10.0.0.1:32653 &\n" in done.stderr


@pytest.mark.parametrize("before", ["", "an older unit\n"])
def test_000_14_where_systemd_does_not_run_nothing_is_left_behind(machine: Machine, before: str) -> None:
    machine.program("systemctl", NO_SYSTEMD)
    if before:
        machine.unit.write_text(before)
    done = machine.run("setup", K3S_NODE_IP="10.0.0.1")
    assert done.returncode == 1
    assert "ERROR: systemctl daemon-reload failed (1): System has not been booted with systemd" in done.stderr
    assert "forward run TCP-LISTEN:443,fork,reuseaddr TCP:10.0.0.1:32653 &" in done.stderr
    assert (machine.unit.read_text() if machine.unit.exists() else "") == before
    assert [path for path in machine.unit.parent.iterdir() if path != machine.unit] == []


def test_a_folder_that_cannot_be_written_is_named(machine: Machine) -> None:
    done = machine.run("setup", K3S_NODE_IP="10.0.0.1", K3S_INGRESS_SERVICE_FILE="/proc/nowhere/x.service")
    assert done.returncode == 3 and "writing /proc/nowhere/x.service" in done.stderr and "sudo" in done.stderr
