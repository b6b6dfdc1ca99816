"""An ``http`` rule's retries, faults on purpose, and origins whose scripts may read the answers (corsPolicy)."""

from __future__ import annotations

from tproxy.core.fields import Fields
from tproxy.core.http.filters import Cors, Fault, Retry
from tproxy.core.http.routes import Kind, Text
from tproxy.gateway.findings import Findings, refuse
from tproxy.gateway.http_words import header_name, seconds
from tproxy.gateway.istio.actions import percentage
from tproxy.gateway.istio.matches import string_match
from tproxy.gateway.objects import Object

# envoyproxy.io, router filter: x-envoy-retry-on and x-envoy-retry-grpc-on
_WORDS = (
    *("5xx", "gateway-error", "reset", "reset-before-request", "connect-failure", "envoy-ratelimited", "retriable-4xx"),
    *("refused-stream", "retriable-status-codes", "retriable-headers", "http3-post-connect-failure"),
    *("cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable"),
)
DEFAULT = Retry(2, frozenset({"connect-failure", "refused-stream", "unavailable", "cancelled"}))
_GRPC = (
    *("OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS"),
    *("PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED"),
    *("INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"),
)


def retries(entry: Fields) -> Retry | None:
    """HTTPRetry; without one Istio's default holds, with no attempts there are none."""
    if entry.raw("retries") is None:
        return DEFAULT
    given = entry.inner("retries")
    attempts = given.number("attempts", 0, -(2**31), 2**31)
    if attempts < 0:
        raise given.error("attempts", "attempts cannot be negative")
    words, codes = _retry_on(given)
    per_try = given.parsed("perTryTimeout", seconds, "0s") or None
    backoff = given.parsed("backoff", seconds, "25ms")
    other = given.flag("retryIgnorePreviousHosts", True)
    given.flag("retryRemoteLocalities", False)  # localities are not known here
    given.finish()
    return Retry(int(attempts), words, codes, per_try, backoff, other) if attempts else None


def _retry_on(given: Fields) -> tuple[frozenset[str], frozenset[int]]:
    words, codes = set[str](), set[int]()
    for part in given.text("retryOn").split(","):
        if not (word := part.strip()):
            continue
        if word.isdigit():
            if not 100 <= int(word) <= 599:
                raise given.error("retryOn", f"{word!r} is not a valid HTTP status code")
            codes.add(int(word))
        elif word in _WORDS:
            words.add(word)
        else:
            raise given.error("retryOn", f"{word!r} is not a valid retryOn policy", word, _WORDS)
    return (frozenset(words), frozenset(codes)) if words or codes else (DEFAULT.on, DEFAULT.codes)


def fault(entry: Fields, findings: Findings, thing: Object) -> Fault | None:
    """HTTPFaultInjection; without a percentage it never happens."""
    if entry.raw("fault") is None:
        return None
    given = entry.inner("fault")
    delay, abort = given.inner("delay"), given.inner("abort")
    if given.raw("delay") is None and given.raw("abort") is None:
        raise entry.error("fault", "HTTP fault injection must have an abort and/or a delay")
    refuse(delay, ("exponentialDelay",))
    fixed = delay.parsed("fixedDelay", seconds, "0s")
    if given.raw("delay") is not None and not fixed:
        raise delay.error("fixedDelay", "is missing: how long")
    shares = [_share(each, findings, thing) if each.data else 0.0 for each in (delay, abort)]
    status, grpc = _abort(abort) if given.raw("abort") is not None else (0, None)
    for each in (delay, abort, given):
        each.finish()
    return Fault(fixed, shares[0], status, grpc, shares[1])


def _share(each: Fields, findings: Findings, thing: Object) -> float:
    if "percent" in each.data:
        return each.integer("percent", 0, 0, 100) / 100
    if each.raw("percentage") is None:
        findings.warn(thing, each.path, "has no percentage: it never happens")
    return percentage(each, "percentage", "percentage", 0.0)


def _abort(abort: Fields) -> tuple[int, int | None]:
    refuse(abort, ("http2Error",))
    if abort.raw("httpStatus") is None and abort.raw("grpcStatus") is None:
        raise abort.error("httpStatus", "fault abort must have an httpStatus or a grpcStatus")
    if abort.raw("httpStatus") is not None:
        status = abort.integer("httpStatus", 0, -(2**31), 2**31)
        if not 200 <= status <= 599:
            raise abort.error("httpStatus", f"HTTP status {status} is not in range 200-599")
        return status, None
    word = abort.text("grpcStatus").upper()
    if word not in _GRPC:
        raise abort.error("grpcStatus", f"grpc status {word!r} is not supported", word, _GRPC)
    return 0, _GRPC.index(word)


def cors(entry: Fields) -> Cors | None:
    """CorsPolicy."""
    if entry.raw("corsPolicy") is None:
        return None
    given = entry.inner("corsPolicy")
    origins = [string_match(each) for each in given.each("allowOrigins")]
    origins += [Text(Kind.EXACT, value) for value in given.items("allowOrigin", str)]
    preflights = given.choice("unmatchedPreflights", "UNSPECIFIED", ("UNSPECIFIED", "FORWARD", "IGNORE"))
    age = given.parsed("maxAge", seconds, "0s")
    made = Cors(
        origins=tuple(origins),
        methods=given.items("allowMethods", _method),
        headers=given.items("allowHeaders", header_name),
        expose=given.items("exposeHeaders", header_name),
        max_age=int(age) if given.raw("maxAge") is not None else None,
        credentials=given.flag("allowCredentials", False),
        forward_unmatched=preflights != "IGNORE",
    )
    given.finish()
    return made


def _method(value: object) -> str:
    if not isinstance(value, str) or not (value == "*" or value.isalpha()):
        raise ValueError(f'"{value}" is not a supported HTTP method')
    return value
