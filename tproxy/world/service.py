"""A Service's address, and a node that translates it as kube-proxy does: each new connection to one of the endpoints.

>>> print(rules("10.96.0.20", 8080, ["10.77.0.3"], masquerade=False).splitlines()[-5].strip())
ip daddr 10.96.0.20 tcp dport 8080 dnat to numgen random mod 1 map { 0 : 10.77.0.3 }
"""

from __future__ import annotations

from collections.abc import Sequence

from tproxy.kernel import netns, nft
from tproxy.world.pods import Pod, World

TABLE = "ip tproxy_service"
SETTINGS = ("ip_forward=1", "conf.all.rp_filter=0", "conf.eth0.rp_filter=0", "conf.all.send_redirects=0")


def rules(address: str, port: int, endpoints: Sequence[str], masquerade: bool) -> str:
    """One transaction in the place of the last; connections that have begun stay where they are.

    With ``masquerade`` answers find their way back over the node, and the endpoint sees the node's address.
    """
    chosen = ", ".join(f"{index} : {endpoint}" for index, endpoint in enumerate(endpoints))
    balanced = f"dnat to numgen random mod {len(endpoints)} map {{ {chosen} }}"
    after = f"ct original ip daddr {address} masquerade" if masquerade else "accept"
    return f"""add table {TABLE}
delete table {TABLE}
table {TABLE} {{
  chain after {{ type nat hook postrouting priority 100; {after}; }}
  chain before {{
    type nat hook prerouting priority -100;
    ip daddr {address} tcp dport {port} {balanced if endpoints else "drop"}
  }}
}}
"""


def gone() -> str:
    """The transaction that takes it away."""
    return f"add table {TABLE}\ndelete table {TABLE}\n"


class Service:
    """A pod that is the node; callers keep their address."""

    def __init__(self, world: World, address: str, port: int) -> None:
        self.node, self.address, self.port = world.pod("node"), address, port
        self.node.run(["sysctl", "-qw", *(f"net.ipv4.{one}" for one in SETTINGS)], check=True)
        self.node.add_address(f"{address}/32")

    def endpoints(self, *ready: Pod) -> None:
        """New connections go to one of these from now on."""
        with netns.inside(self.node.netns):
            nft.apply(rules(self.address, self.port, [one.v4 for one in ready], masquerade=False))

    def returns(self, server: Pod, caller: Pod) -> None:
        """What a server answers to a caller goes through the node, which knows who was called."""
        server.run(["ip", "route", "replace", caller.v4, "via", self.node.v4], check=True)
