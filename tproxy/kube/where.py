"""Where the Kubernetes API server is, and as whom it is asked."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

SECRETS = "/var/run/secrets/kubernetes.io/serviceaccount"  # where the kubelet mounts a pod's own token
SERVER = "https://kubernetes.default.svc"


@dataclass(frozen=True, slots=True)
class Kubernetes:
    """How the API server is asked."""

    host: str
    port: int
    token_file: str  # read anew for each question
    ca_file: str
    check_address: bool = True  # of who shows us a token: it must be the pod's


def parse_api_server(value: object) -> tuple[str, int]:
    """Host and port of an https URL; ValueError says why it is none."""
    try:
        url = urlsplit(value if isinstance(value, str) else "")
        port = url.port or 443
    except ValueError:
        url, port = urlsplit(""), 443
    if url.scheme != "https" or not url.hostname or url.path.strip("/") or url.query or url.username is not None:
        raise ValueError("expected https://host or https://host:port, and nothing behind it")
    return url.hostname, port
