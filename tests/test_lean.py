"""What a gateway of files leaves out of its memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests import gateway as gw
from tests.web import rule, service, to


@pytest.mark.parametrize("expression", [False, True])
def test_one_openssl_is_loaded_and_re2_where_there_is_an_expression(tmp_path: Path, expression: bool) -> None:
    port, metrics = gw.free_port(), gw.free_port()
    match = [{"uri": {"regex": "/a+"}}] if expression else [{"uri": {"prefix": "/a"}}]
    gw.write(
        tmp_path / "config" / "all.yaml",
        gw.gateway_yaml(gw.server(port, "HTTPS", "a.example.com", mode="SIMPLE", credentialName="a")),
        gw.virtual("a", ["a.example.com"], http=[rule(to("web"), match=match)]),
        gw.secret("a", "istio-system", *gw.self_signed("a.example.com")),
        *service("web", {"http": 80}, gw.free_port()),
    )
    with gw.running(tmp_path / "config", "--metrics-port", str(metrics)) as gateway:
        assert gw.curl("a.example.com", port, "-o", "/dev/null", "-w", "%{http_code}").stdout == "404", "TLS is ended"
        page = urlopen(f"http://127.0.0.1:{metrics}/metrics", timeout=10).read().decode()
        assert "tproxy_connections" in page
        maps = Path(f"/proc/{gateway.process.popen.pid}/maps").read_text()
    loaded = {Path(words[-1]).name.partition(".")[0] for line in maps.splitlines() if len(words := line.split()) > 5}
    assert {"libssl", "libcrypto", "_ssl"} & loaded == set()
    assert ("_re2" in loaded) == expression


def test_what_was_left_out_can_be_imported_and_says_so_when_it_is_called() -> None:
    code = """
from tproxy.cli import lean
lean.leave_out()
import asyncio, hashlib, ssl, uvloop
assert hashlib.sha256(b"abc").hexdigest().startswith("ba7816bf")
try:
    ssl.create_default_context()
except RuntimeError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=20).stdout
    assert said == "ssl.create_default_context was left out of this process (tproxy/cli/lean.py)\n"
