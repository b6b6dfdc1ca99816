"""What the tests of the directory and of policies share: a control that tells sidecars something, and its cluster."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from tests.cluster import Cluster
from tests.control import Ca, metric
from tproxy.control import authority, store
from tproxy.control.authority import Pair
from tproxy.core.identity import SpiffeId
from tproxy.world.ports import free_port
from tproxy.world.process import wait_for
from tproxy.world.sidecars import Sidecar


class Reader(Protocol):
    """A stream as a sidecar reads it."""

    stream: Any

    def __init__(self, port: int, roots: bytes, svid: Pair | None, middle: bytes = b"", **more: Any) -> None: ...

    def close(self) -> None:
        """Hang up."""


R = TypeVar("R", bound=Reader)


class Place(Generic[R]):
    """Cluster, server, callers. ``what``: as in the metrics; ``who`` reads if nobody else is named."""

    def __init__(self, folder: Path, what: str, who: SpiffeId, reader: type[R], **sections: Any) -> None:
        self._what, self._who, self._reader = what, who, reader
        self.cluster, self.port = Cluster(folder), free_port()
        self.ca = Ca(folder, kubernetes=self.cluster.config, directory={"port": self.port}, **sections)
        self.open: list[R] = []

    @property
    def roots(self) -> bytes:
        """The authority's bundle, as it is now."""
        return (self.ca.dir / "bundle.pem").read_bytes()

    def svid(self, who: SpiffeId | None = None) -> tuple[Pair, bytes]:
        """Of the CA that signs now, and its intermediate."""
        return svid(self.ca, who or self._who)

    def reads(self, who: SpiffeId | None = None, **more: Any) -> R:
        """A stream of this workload's sidecar."""
        made = self._reader(self.port, self.roots, *self.svid(who), **more)
        self.open.append(made)
        return made

    def refused(self, svid: Pair | None, middle: bytes = b"") -> grpc.StatusCode:
        """The code that this caller gets."""
        stranger = self._reader(self.port, self.roots, svid, middle)
        with pytest.raises(grpc.RpcError) as error:
            next(stranger.stream)
        stranger.close()
        return error.value.code()

    def metric(self, name: str) -> float:
        """Of what is told."""
        return metric(self.ca.page("/metrics")[1], f"tproxy_{self._what}_{name}")

    def clear(self, gauge: str) -> None:
        """Nobody reads, and the cluster is empty, and control knows it."""
        for one in self.open:
            one.close()
        self.open.clear()
        self.cluster.down = False
        for path, objects in self.cluster.objects.items():
            for name in list(objects):
                self.cluster.delete(path, name)
        wait_for(lambda: self.metric(gauge) == 0, 20, "everything is forgotten")

    def stop(self) -> None:
        """All of it."""
        self.ca.kill()
        self.cluster.stop()


def svid(ca: Ca, who: SpiffeId) -> tuple[Pair, bytes]:
    """Of the CA that signs now, and its intermediate."""
    middle, key = store.signer(ca.dir), ec.generate_private_key(ec.SECP256R1())
    made = authority.issue(middle, who, key.public_key(), timedelta(hours=1), authority.utc_now())
    return Pair(made, key), middle.certificate_pem()


def status(sidecar: Sidecar, what: str) -> dict[str, Any]:
    """How a sidecar's reading goes, as its dump says."""
    found: dict[str, Any] = json.loads(sidecar.page(15000, "/config_dump"))[what]
    return found
