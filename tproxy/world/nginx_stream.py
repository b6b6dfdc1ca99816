"""nginx's stream module as a sidecar in a pod: captured by the same rules, mTLS on the original port, measured.

nginx cannot make a listening socket transparent, and nft's tproxy hands nothing to one that is not. But it takes over
sockets that it inherits (the variable NGINX, made for upgrades without a gap), so ``main`` opens them and becomes an
unmodified nginx. It cannot mark its own connections: the rules exempt its uid. And it wants a name in the peer's
certificate, so its own carries one beside the SPIFFE id; that id is not checked: less work. IPv4 only.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

from tproxy.kernel.sock import IP_TRANSPARENT
from tproxy.world.haproxy import as_uid, exempted
from tproxy.world.pods import Pod, Process, wait_for

UID = 1337
NAME = "mesh.local"
PORTS = (15001, 15006)
MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
CONFIG = """\
load_module {module};
daemon off; worker_processes {workers}; pid {folder}/pid; error_log stderr warn;
events {{ worker_connections 16384; }}
stream {{
  ssl_protocols TLSv1.3; ssl_session_cache off; ssl_session_tickets off;
  ssl_certificate {cert}; ssl_certificate_key {key}; ssl_client_certificate {ca};
  ssl_verify_client on; ssl_verify_depth 2;
  proxy_ssl_protocols TLSv1.3; proxy_ssl_session_reuse off;
  proxy_ssl_certificate {cert}; proxy_ssl_certificate_key {key};
  proxy_ssl_verify on; proxy_ssl_trusted_certificate {ca}; proxy_ssl_verify_depth 2; proxy_ssl_name {name};
  proxy_timeout 1h; tcp_nodelay on;
  server {{ listen 0.0.0.0:15001; proxy_pass $server_addr:$server_port; proxy_ssl on; }}
  server {{ listen 0.0.0.0:15006 ssl; proxy_pass $server_addr:$server_port; }}
}}
"""


def available() -> bool:
    """Whether there is an nginx with the stream module."""
    return shutil.which("nginx") is not None and MODULE.exists()


class NginxStream:
    """Rules of ours, proxy of theirs."""

    def __init__(self, pod: Pod, authority: Path, svid: Path, workers: int = 2) -> None:
        self.pod, self.process = pod, None
        self.folder = folder = pod.world.directory / f"stream-{pod.name}"
        folder.mkdir()
        shutil.chown(folder, UID)
        cert, key = _certificate(folder, authority)
        self.path = folder / "nginx.conf"
        values = {"cert": cert, "key": key, "ca": svid / "ca.pem", "name": NAME, "module": MODULE}
        self.path.write_text(CONFIG.format(folder=folder, workers=workers, **values))

    process: Process | None

    def up(self) -> NginxStream:
        """Install the rules, start nginx as the uid that they exempt, wait until it listens."""
        exempted(self.pod, UID)
        own = [sys.executable, "-m", "tproxy.world.nginx_stream", str(self.path), str(self.folder)]
        self.process = process = self.pod.start([*as_uid(UID), *own], log=self.path.with_suffix(".log"))
        wait_for(lambda: all(self.pod.listens(port) for port in PORTS), 20, "nginx stream listens", process)
        return self

    def pss(self) -> int:
        """Proportional set size in bytes, master and workers together."""
        if self.process is None:
            raise RuntimeError("nginx stream was never started")
        return self.process.pss()


def _certificate(folder: Path, authority: Path) -> tuple[Path, Path]:
    """P-256, signed by our authority like every other, with a DNS name that nginx can check; openssl-x509(1)."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    key.touch(0o600)
    signer = ["-CA", str(authority / "intermediate.crt"), "-CAkey", str(authority / "intermediate.key")]
    fresh = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", str(key), "-subj", "/"]
    names = f"subjectAltName=DNS:{NAME},URI:spiffe://{NAME}/ns/bench/sa/nginx"
    extensions = ["-addext", names, "-addext", "extendedKeyUsage=serverAuth,clientAuth"]
    argv = ["openssl", "req", "-x509", "-days", "1", *fresh, *signer, *extensions, "-out", str(cert)]
    subprocess.run(argv, check=True, capture_output=True)
    cert.write_bytes(cert.read_bytes() + (authority / "intermediate.crt").read_bytes())
    for path in (cert, key):
        shutil.chown(path, UID)
    return cert, key


def main(conf: str, prefix: str) -> None:
    """Open the transparent sockets, and become nginx."""
    inherited = ""
    for port in PORTS:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
        sock.bind(("0.0.0.0", port))
        sock.listen(4096)
        sock.setblocking(False)  # as nginx leaves its own: two workers race for each connection
        sock.set_inheritable(True)
        inherited += f"{sock.detach()};"
    argv = ["nginx", "-c", conf, "-p", prefix, "-e", "stderr"]
    os.execve(shutil.which("nginx") or "/usr/sbin/nginx", argv, {"NGINX": inherited})


if __name__ == "__main__":
    main(*sys.argv[1:])
