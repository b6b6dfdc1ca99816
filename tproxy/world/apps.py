"""Unmodified applications in pods: each function starts one and waits until it listens."""

from __future__ import annotations

import sys
from pathlib import Path

from tproxy.world.pods import Pod, Process, wait_for

NGINX = """\
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr notice; user root;
events {{ worker_connections 16384; }}
http {{
  access_log {access};
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  keepalive_requests 1000000000; keepalive_timeout 1h; sendfile on; tcp_nopush off;
  server {{ listen 0.0.0.0:{port} backlog=4096; listen [::]:{port} backlog=4096; root {folder}/www; }}
}}
"""


def listening(process: Process, pod: Pod, port: int) -> Process:
    """Wait until a program listens on a TCP port of its pod."""
    wait_for(lambda: pod.listens(port, 4) or pod.listens(port, 6), 10, f"port {port} of {pod.name} listens", process)
    return process


def nginx(pod: Pod, files: dict[str, bytes], port: int = 80, access_log: bool = True) -> Process:
    """nginx serving ``files``; its access log is ``access.log`` in ``nginx_folder(pod)``."""
    folder = nginx_folder(pod)
    (folder / "www").mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / "www" / name).write_bytes(data)
    conf = folder / "nginx.conf"
    access = f"{folder}/access.log" if access_log else "off"
    conf.write_text(NGINX.format(folder=folder, port=port, access=access))
    process = pod.start(["nginx", "-e", "stderr", "-c", str(conf), "-p", str(folder)], log=folder / "nginx.log")
    return listening(process, pod, port)


def nginx_folder(pod: Pod) -> Path:
    """Where a pod's nginx lives."""
    folder = pod.world.directory / f"nginx-{pod.name}"
    folder.mkdir(exist_ok=True)
    return folder


def redis(pod: Pod, port: int = 6379) -> Process:
    """A redis server that keeps nothing."""
    argv = ["redis-server", "--port", str(port), "--protected-mode", "no", "--save", "", "--bind", "*", "-::*"]
    return listening(pod.start([*argv, "--dir", str(pod.world.directory)]), pod, port)


def peer(pod: Pod, port: int, mode: str, count: int = 0) -> Process:
    """Our own small server; see tproxy.world.peer."""
    argv = [sys.executable, "-m", "tproxy.world.peer", "listen", "--port", str(port), "--mode", mode]
    return listening(pod.start([*argv, "--bytes", str(count)]), pod, port)
