"""Waiting for one socket, once, by the loop: what the relay in Python does where the compiled one has its own way."""

from __future__ import annotations

import asyncio
import socket


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def readable(sock: socket.socket) -> None:
    """Until there is something to read, an end, or an error."""
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    fd = sock.fileno()
    loop.add_reader(fd, _wake, future)
    try:
        await future
    finally:
        loop.remove_reader(fd)


async def writable(sock: socket.socket) -> None:
    """Until there is room to write, or an error."""
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    fd = sock.fileno()
    loop.add_writer(fd, _wake, future)
    try:
        await future
    finally:
        loop.remove_writer(fd)


async def send_all(sock: socket.socket, data: bytes) -> None:
    """Send everything, however slowly the peer reads; the caller sets the deadline."""
    view = memoryview(data)
    while view:
        try:
            view = view[sock.send(view) :]
        except BlockingIOError:
            await writable(sock)
