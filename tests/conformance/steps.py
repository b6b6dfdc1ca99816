"""Tests that change what was applied: each step's statuses, then the next step."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.conformance.certificates import INFRA, Document
from tests.conformance.check import checked
from tests.conformance.world import UNUSABLE, World

Step = Callable[[World], Iterator[str]]


def _now(world: World, *lines: str) -> Iterator[str]:
    statuses = world.compiled().statuses
    for line in lines:
        yield from checked(line, statuses)


def modify_listeners(world: World) -> Iterator[str]:
    """One is added, one is taken away."""
    both = "Accepted=True ResolvedRefs=True kinds=HTTPRoute,GRPCRoute routes=1"
    added: Document = {
        "name": "http",
        "port": 80,
        "protocol": "HTTP",
        "hostname": "data.test.com",
        "allowedRoutes": {"namespaces": {"from": "All"}},
    }
    world.change("Gateway", "gateway-add-listener", lambda gw: gw["spec"]["listeners"].append(added))
    yield from _now(world, f"Gateway gateway-add-listener #https {both}", f"Gateway gateway-add-listener #http {both}")

    def only_http(gateway: Document) -> None:
        gateway["spec"]["listeners"] = [each for each in gateway["spec"]["listeners"] if each["name"] == "http"]

    world.change("Gateway", "gateway-remove-listener", only_http)
    yield from _now(world, f"Gateway gateway-remove-listener #http {both}")
    if len(world.compiled().statuses[f"Gateway {INFRA}/gateway-remove-listener"]["listeners"]) != 1:
        yield "the listener that was taken away has a status"


def static_addresses(world: World) -> Iterator[str]:
    """One of an unknown kind, one that cannot be had, one that can; then without the first; then the last alone."""
    name = "gateway-static-addresses"
    yield from _now(world, f"Gateway {name} Accepted=False:UnsupportedAddress")

    def without(text: str) -> Callable[[Document], None]:
        def edit(gateway: Document) -> None:
            have = gateway["spec"]["addresses"]
            gateway["spec"]["addresses"] = [each for each in have if text not in (each["value"], each.get("type"))]

        return edit

    world.change("Gateway", name, without("test/fake-invalid-type"))
    yield from _now(world, f"Gateway {name} Accepted=True:Accepted Programmed=False:AddressNotUsable")
    world.change("Gateway", name, without(UNUSABLE))
    good = "Accepted=True ResolvedRefs=True kinds=HTTPRoute,GRPCRoute routes=0"
    yield from _now(
        world,
        f"Gateway {name} Accepted=True:Accepted Programmed=True:Programmed",
        f"Gateway {name} #http {good}",
    )
    wanted = world.objects["Gateway", INFRA, name]["spec"]["addresses"][0]["value"]
    have = world.compiled().statuses[f"Gateway {INFRA}/{name}"]["addresses"]
    if [each["value"] for each in have] != [wanted]:
        yield f"addresses are {have}, not {wanted}"


def bump(kind: str, name: str, edit: Callable[[Document], object]) -> Step:
    """A changed spec is a new generation, and every condition says that it has been looked at."""

    def step(world: World) -> Iterator[str]:
        key = kind, "" if kind == "GatewayClass" else INFRA, name
        before = world.objects[key]["metadata"]["generation"]
        world.change(kind, name, edit)
        if world.objects[key]["metadata"]["generation"] != before + 1:
            yield "the test changed nothing"  # who checks every status sees the generation
        yield from _now(world, f"{kind} {name} Accepted=True")

    return step


def _another_backend(route: Document) -> None:
    route["spec"]["rules"][0]["backendRefs"][0]["name"] = "infra-backend-v2"


def _newer(kind: str, old: str, new: str, backend: str) -> Step:
    """The suite makes the second route in code, a second later."""

    def step(world: World) -> Iterator[str]:
        older = world.objects[kind, INFRA, old]
        spec = {**older["spec"], "rules": [{"backendRefs": [{**_backend(older), "name": backend}]}]}
        world.apply({"apiVersion": older["apiVersion"], "kind": kind, "metadata": {"name": new}, "spec": spec})
        gateway, section = spec["parentRefs"][0]["name"], spec["parentRefs"][0]["sectionName"]
        yield from _now(
            world,
            f"{kind} {old} Accepted=True:Accepted",
            f"{kind} {new} Accepted=True:Accepted",
            f"Gateway {gateway} #{section} Accepted=True:Accepted routes=2 kinds={kind}",
        )

    return step


def _backend(route: Document) -> Document:
    found: Document = route["spec"]["rules"][0]["backendRefs"][0]
    return found


STEPS: dict[str, Step] = {
    "GatewayModifyListeners": modify_listeners,
    "GatewayStaticAddresses": static_addresses,
    "GatewayObservedGenerationBump": bump(
        "Gateway",
        "gateway-observed-generation-bump",
        lambda gw: gw["spec"]["listeners"].append(
            {"name": "alternate", "port": 8080, "protocol": "HTTP", "allowedRoutes": {"namespaces": {"from": "All"}}}
        ),
    ),
    "GatewayClassObservedGenerationBump": bump(
        "GatewayClass", "gatewayclass-observed-generation-bump", lambda made: made["spec"].update(description="new")
    ),
    "HTTPRouteObservedGenerationBump": bump("HTTPRoute", "observed-generation-bump", _another_backend),
    "BackendTLSPolicyObservedGenerationBump": bump(
        "BackendTLSPolicy",
        "observed-generation-bump",
        lambda policy: policy["spec"]["validation"].update(hostname="foo.example.com"),
    ),
    "TCPRouteMultipleRoutesAttachment": _newer(
        "TCPRoute", "tcproute-attach-older", "tcproute-attach-newer", "tcp-attach-backend-2"
    ),
    "UDPRouteMultipleRoutesAttachment": _newer(
        "UDPRoute", "udproute-attach-older", "udproute-attach-newer", "udp-attach-backend-2"
    ),
}
