"""gRPC as the sources use it: channels without surprises, and failures in words. Nobody else imports it."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import AsyncIterator, Mapping

import grpc
from grpc import StatusCode

from tproxy.identity.outward import outward
from tproxy.identity.source import SourceError, UnreachedError

METADATA_LIMIT = 16 * 1024  # bytes of headers that a server may send
_SHOWN = 200  # characters of a server's own words in our errors
_TLS = re.compile(r"OPENSSL_internal:(\w+): ([^:]{1,80})")  # an error of BoringSSL, and what verification says to it
_NO_VERDICT = "Invalid certificate verification context"  # nothing was verified: the handshake never came that far
_MISNAMED = ("Hostname Verification", "is not in peer certificate")


def options(message_limit: int, server_name: str = "") -> list[tuple[str, str | int]]:
    """Channel arguments (grpc/grpc.h): bounded answers; no proxies, retries or service configs behind our back."""
    found: list[tuple[str, str | int]] = [
        ("grpc.max_receive_message_length", message_limit),
        ("grpc.max_metadata_size", METADATA_LIMIT),
        ("grpc.absolute_max_metadata_size", METADATA_LIMIT),
        ("grpc.enable_retries", 0),
        ("grpc.enable_http_proxy", 0),
        ("grpc.service_config_disable_resolution", 1),
        ("grpc.http2.bdp_probe", 0),  # windows stay as small as they begin: what we do not read waits in the sender
    ]
    if server_name:
        found.append(("grpc.ssl_target_name_override", server_name))
    return found


@contextlib.asynccontextmanager
async def way(where: str, address: str, seconds: float) -> AsyncIterator[str]:
    """A target that leads out of the pod (``outward``); UnreachedError if nobody answers at host:port."""
    opening = outward(address, seconds)
    try:
        target = await opening.__aenter__()
    except TimeoutError as error:
        raise UnreachedError(where, f"nobody answers within {seconds:g} s") from error
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else error
        raise UnreachedError(where, f"nobody answers ({why})") from error
    try:
        yield target
    finally:
        await opening.__aexit__(None, None, None)


def failure(
    where: str,
    error: grpc.aio.AioRpcError,
    advice: Mapping[StatusCode, str],
    secret: str = "",
    field: str = "identity.istioCa",
) -> SourceError:
    """What a failed call means; ``advice`` has the words for codes that mean more to one source than to others.

    A server may repeat what it was sent: no part of the secret, a token, is shown. ``field``: of the configuration.
    """
    details = _printable(_without(secret, error.details() or ""))
    code = error.code()
    if code is StatusCode.UNAVAILABLE and (why := _handshake(details, field)):
        return SourceError(where, why)
    words = {
        StatusCode.UNAVAILABLE: "nobody answers, or the connection broke",
        StatusCode.DEADLINE_EXCEEDED: "no answer in time: the server accepts connections, or is overloaded, or is none",
        StatusCode.RESOURCE_EXHAUSTED: "the answer is larger than allowed, or the server is overloaded",
        StatusCode.UNIMPLEMENTED: "the server does not offer this call: is it the right address?",
        StatusCode.CANCELLED: "the server cancelled the call",
        **advice,
    }
    return SourceError(where, f"{words.get(code, f'failed with {code.name}')}{_quoted(details)}")


def _handshake(details: str, field: str) -> str:
    """Why TLS failed, if it did; gRPC tells only in prose."""
    if any(sign in details for sign in _MISNAMED):
        return f"the server's certificate has another name than the one asked for ({field}.serverName)"
    found = _TLS.search(details)
    if found is None:
        return ""
    if found[2] == _NO_VERDICT:
        return f"the server does not speak TLS as we do ({found[1]})"
    roots = "identity.istioCa.roots" if field == "identity.istioCa" else "our trust bundle"
    return f"the server's certificate is not trusted: {found[2]}; see {roots}"


def _without(secret: str, text: str) -> str:
    for part in (secret, *secret.split(".")):
        text = text.replace(part, "[token]") if len(part) > 7 else text
    return text


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)


def _quoted(details: str) -> str:
    """The server's words, made short: they come from strangers."""
    return f" ({details[:_SHOWN]}{'...' if len(details) > _SHOWN else ''})" if details else ""
