"""What the figures mean, in words, made from the figures. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tproxy.bench import figures
from tproxy.bench.figures import KINDS, Ratio, Results, best, reference
from tproxy.bench.goals import goals

SAME = 0.05  # a difference smaller than this is called none


def text(results: Results) -> list[str]:
    """A few sentences a paragraph; what was not measured is not spoken of."""
    paragraphs = (_verdict, _requests, _bulk, _connections, _memory, _idle, _hop, _price, _noise)
    return [said for paragraph in paragraphs if (said := " ".join(_sentences(paragraph, results)))]


def compared(ratio: Ratio, more: bool, whose: str) -> str:
    """A ratio as one would say it; ``more``: more is better.

    >>> compared(Ratio(1.3, 1.2, 1.4), True, "Envoy's")
    "1.30 times Envoy's, which is better"
    """
    if abs(ratio.median - 1) < SAME:
        return f"about {whose} ({ratio.median:.2f} times)"
    word = "better" if (ratio.median > 1) == more else "worse"
    doubt = "" if ratio.certain else ", though not in every round"
    return f"{ratio.median:.2f} times {whose}, which is {word}{doubt}"


def number(value: float) -> str:
    """Three digits that matter, thousands set apart."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _whose(key: str) -> str:
    return f"{KINDS[key].name}'s"


def _sentences(paragraph: Callable[[Results], Iterator[str]], results: Results) -> list[str]:
    return [f"{said[0].upper()}{said[1:]}." for said in paragraph(results)]


def _against(results: Results, name: str, more: bool) -> str | None:
    """Our value, its unit, and the comparison with the reference."""
    ours, theirs = best(results), reference(results)
    value = results.median(ours, name) if ours else None
    if value is None:
        return None
    unit = next((f" {figure.unit}" for figure in figures.FIGURES if figure.name == name and figure.unit != "1/s"), "")
    ratio = results.ratio(ours or "", theirs or "", name)
    said = f", {compared(ratio, more, _whose(theirs))}" if ratio and theirs else ""
    return f"{number(value)}{unit}{said}"


def _verdict(results: Results) -> Iterator[str]:
    """How many goals are met, and which are not."""
    found = [goal for goal in goals(results) if goal.met is not None]
    missed = [f"{goal.name} ({goal.measured})" for goal in found if not goal.met]
    if found:
        yield f"{len(found) - len(missed)} of {len(found)} goals that were measured are met"
    if missed:
        yield f"missed: {'; '.join(missed)}"
    if results.no_sockmap:
        yield f"sockmap does not work on this machine, so the pair with sockmap has none ({results.no_sockmap})"


def _requests(results: Results) -> Iterator[str]:
    if said := _against(results, figures.rate(32), True):
        yield f"requests a second over 32 connections: {said}"
    if said := _against(results, figures.LOADED["99"], False):
        yield f"offered the same load, half of what Envoy can carry, the slowest per cent takes {said}"
    if said := _against(results, figures.CPU_REQUESTS, False):
        yield f"a thousand requests cost the whole machine's processors {said}"


def _bulk(results: Results) -> Iterator[str]:
    for streams in figures.STREAMS:
        if said := _against(results, figures.bulk(streams), True):
            yield f"bulk over {streams} stream{'s' if streams > 1 else ''}: {said}"
        if said := _against(results, figures.per_gigabyte(streams), False):
            yield f"a gigabyte costs {said}"


def _connections(results: Results) -> Iterator[str]:
    if said := _against(results, figures.NEW, True):
        yield f"new connections a second, each with a full handshake: {said}"
    for other in ("mtls", reference(results)):
        ratio = results.ratio("resumption", other or "", figures.NEW)
        if ratio and other:
            whose = "those without" if other == "mtls" else f"{_whose(other)} without"
            yield f"with resumption they are {compared(ratio, True, whose)}"


def _memory(results: Results) -> Iterator[str]:
    if said := _against(results, figures.MEMORY, False):
        yield f"after load both sidecars together hold {said}"
    if said := _against(results, figures.IDLE_MEMORY, False):
        yield f"before it they held {said}"


def _idle(results: Results) -> Iterator[str]:
    costs = []
    for key in results.idle:
        found = figures.per_connection(results.idle[key])
        if found and found[0]:
            share = figures.kernel_share(results.idle, key)
            kernel = "" if share is None else f" (kernel {share / 1024:.0f})"
            costs.append(f"{KINDS[key].name} {' + '.join(f'{side / 1024:.1f}' for side in found[0])}{kernel}")
    if costs:
        yield f"one more idle connection costs, in KiB of each sidecar: {'; '.join(costs)}"


def _hop(results: Results) -> Iterator[str]:
    for name, more in ((figures.bulk(1), True), (figures.per_gigabyte(1), False)):
        if ratio := results.ratio("hop", "envoyhop", name):
            yield f"plain passthrough through one sidecar, {name}: {compared(ratio, more, 'the tcp_proxy of Envoy')}"


def _price(results: Results) -> Iterator[str]:
    """What each layer costs us, by the CPU time of a request."""
    layers = (
        ("plain", "direct", "two sidecars that do not encrypt take {} times the CPU time of no proxy for a request"),
        ("mtls", "plain", "encryption takes {} times that of the same sidecars in plain"),
        ("sockmap", "mtls", "with sockmap it is {} times that without"),
    )
    for one, other, said in layers:
        ratio = results.ratio(one, other, figures.CPU_REQUESTS)
        if ratio and not (one == "sockmap" and results.no_sockmap):
            yield said.format(f"{ratio.median:.2f}")


def _noise(results: Results) -> Iterator[str]:
    """How much rounds differ, so that nobody reads more into a figure than it holds."""
    ours, theirs = best(results), reference(results)
    if not ours or not theirs:
        return
    found = [(r, f.name) for f in figures.FIGURES if (r := results.ratio(ours, theirs, f.name)) and r.low != r.high]
    if found:
        widest, name = max(found, key=lambda pair: pair[0].high / pair[0].low)
        doubtful = sum(not ratio.certain for ratio, _ in found)
        yield f"of {len(found)} ratios {doubtful} lie on both sides of 1 in different rounds"
        yield f"the widest spread is that of {name}, {widest.low:.2f} to {widest.high:.2f}"
    busy = results.about.get("load before", 0)
    if busy > 0.5:
        yield f"the machine was not quiet before the run (load {busy:g}), so small differences mean nothing"
