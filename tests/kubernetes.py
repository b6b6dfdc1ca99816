"""A small HTTPS server that answers TokenReview and questions about pods as the Kubernetes API server does.

Its tokens are JWTs of its own (HS256 where Kubernetes has RS256: nobody but itself verifies them).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import ssl
import threading
import time
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cryptography import x509

from tests.objects import Cluster
from tproxy.control import authority
from tproxy.control.authority import Pair
from tproxy.core.identity import SpiffeId

ISSUER = "https://kubernetes.default.svc"
RIGHT = "token of the CA's own service account"


def _part(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class _Quiet(ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """A client that hangs up is what some tests are about."""


class ApiServer:
    """Pods by (namespace, name); ``twist`` may change an answer before it is sent."""

    def __init__(self, folder: Path, port: int = 0) -> None:
        self.cluster = Cluster()
        self.pods: dict[tuple[str, str], dict[str, Any]] = {}
        self.seen: list[str] = []  # method and path of each request
        self.lags = False  # a review that does not know yet that a pod was deleted
        self.twist: Any = None  # (status, document) -> (status, bytes), or None
        self._secret = b"of this API server"
        now = authority.utc_now()
        root = authority.new_root("kubernetes", "ecdsa", now)
        key = authority.new_key("ecdsa")
        names = [x509.IPAddress(ip_address("127.0.0.1"))]
        who = SpiffeId("kubernetes", ("api",))
        cert = Pair(authority.issue(root, who, key.public_key(), timedelta(days=1), now, names), key)
        (folder / "api.pem").write_bytes(cert.certificate_pem() + cert.key_pem())
        (folder / "api-ca.pem").write_bytes(root.certificate_pem())
        (folder / "api-token").write_text(RIGHT)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "api.pem")
        self._server = _Quiet(("127.0.0.1", port), _handler(self))
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        self.config = {
            "apiServer": f"https://127.0.0.1:{self._server.server_port}",
            "tokenFile": str(folder / "api-token"),
            "caFile": str(folder / "api-ca.pem"),
        }

    def stop(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def pod(self, name: str, account: str, *, ip: str = "127.0.0.1", node: str = "node-1", **spec: Any) -> str:
        """A running pod in the namespace shop; its uid."""
        uid = f"uid-of-{name}-{len(self.seen)}-{time.monotonic_ns()}"
        host = bool(spec.get("hostNetwork"))
        status = {"phase": "Running", "hostIP": ip if host else "10.9.9.9"}
        status |= {} if host or not ip else {"podIP": ip, "podIPs": [{"ip": ip}]}
        self.pods["shop", name] = {
            "metadata": {"name": name, "namespace": "shop", "uid": uid},
            "spec": {"serviceAccountName": account, "nodeName": node, **spec},
            "status": status,
        }
        return uid

    def token(self, pod: str = "", account: str = "web", **claims: Any) -> str:
        """A token, as projected into the pod; unbound without one."""
        inside: dict[str, Any] = {"namespace": "shop", "serviceaccount": {"name": account}}
        if pod:
            inside["pod"] = {"name": pod, "uid": self.pods["shop", pod]["metadata"]["uid"]}
        now = int(time.time())
        said = {"iss": ISSUER, "aud": ["istio-ca"], "iat": now, "exp": now + 3600, "kubernetes.io": inside, **claims}
        body = f"{_part(b'{}')}.{_part(json.dumps(said).encode())}"
        return f"{body}.{self._signature(body)}"

    def _signature(self, body: str) -> str:
        return _part(hmac.digest(self._secret, body.encode(), hashlib.sha256))

    def review(self, spec: dict[str, Any]) -> dict[str, Any]:
        """The status of a TokenReview."""
        body, _, signature = str(spec["token"]).rpartition(".")
        if not hmac.compare_digest(signature, self._signature(body)):
            return {"error": "[invalid bearer token, square/go-jose: error in cryptographic primitive]"}
        middle = body.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(middle + "=" * (-len(middle) % 4)))
        common = [one for one in spec["audiences"] if one in claims["aud"]]
        if claims["iss"] != ISSUER:
            return {"error": "invalid bearer token, issuer is not known"}
        if claims["exp"] <= time.time():
            return {"error": "[invalid bearer token, token has expired]"}
        if not common:
            return {"error": f"token audiences {claims['aud']} is invalid for the target audiences {spec['audiences']}"}
        inside, extra = claims["kubernetes.io"], {}
        if pod := inside.get("pod"):
            found = self.pods.get(("shop", pod["name"]))
            if not self.lags and (not found or found["metadata"]["uid"] != pod["uid"]):
                return {"error": "[invalid bearer token, pod is not there any more]"}
            where = "authentication.kubernetes.io/"
            extra = {f"{where}pod-name": [pod["name"]], f"{where}pod-uid": [pod["uid"]]}
        name = f"system:serviceaccount:{inside['namespace']}:{inside['serviceaccount']['name']}"
        return {"authenticated": True, "audiences": common, "user": {"username": name, "extra": extra}}

    def collection(self, handler: BaseHTTPRequestHandler) -> bool:
        """Whether this was a list or a watch of everything, and has been answered."""
        return False

    def answer(self, method: str, target: str, body: bytes, kind: str = "") -> tuple[int, Any]:
        """Status and document."""
        url = urlsplit(target)
        if (method, url.path) == ("POST", "/apis/authentication.k8s.io/v1/tokenreviews"):
            question = json.loads(body)
            return 201, {"kind": "TokenReview", "status": self.review(question["spec"])}
        parts = url.path.strip("/").split("/")
        if method == "GET" and parts[:3] == ["api", "v1", "namespaces"] and parts[4:5] == ["pods"]:
            if len(parts) == 6:
                found = self.pods.get((parts[3], parts[5]))
                return (200, found) if found else (404, {"kind": "Status", "code": 404})
            node = parse_qs(url.query)["fieldSelector"][0].removeprefix("spec.nodeName=")
            inside = [pod for (space, _), pod in self.pods.items() if space == parts[3]]
            return 200, {"items": [pod for pod in inside if pod["spec"]["nodeName"] == node]}
        return self.cluster.answer(method, url, body, kind)


def _handler(api: ApiServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._serve()

        def do_POST(self) -> None:
            self._serve()

        def do_PATCH(self) -> None:
            self._serve()

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            api.seen.append(f"{self.command} {self.path}")
            allowed = self.headers["authorization"] == f"Bearer {RIGHT}"
            if allowed and self.command == "GET" and api.collection(self):
                return
            kind = self.headers["content-type"] or ""
            status, document = api.answer(self.command, self.path, body, kind) if allowed else (401, {})
            data = json.dumps(document).encode()
            if api.twist is not None:
                status, data = api.twist(status, document)
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            if status == 302:
                self.send_header("location", self.path)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """Nothing on stderr."""

    return Handler
