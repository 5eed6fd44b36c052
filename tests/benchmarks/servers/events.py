"""asyncio, as many processes as the pool has workers on one listener: by streams, by a protocol, and on uvloop."""

import asyncio
import importlib
import socket
from collections.abc import Awaitable, Callable
from typing import cast

from ..traffic import Address, Ready
from .bare import forked, listening

Serve = Callable[[socket.socket, bool], Awaitable[asyncio.Server]]


def streams(traffic: str, address: Address, workers: int, ready: Ready) -> None:
    serving(by_streams, traffic, address, workers, ready)


def protocol(traffic: str, address: Address, workers: int, ready: Ready) -> None:
    serving(by_protocol, traffic, address, workers, ready)


def uvloop_protocol(traffic: str, address: Address, workers: int, ready: Ready) -> None:
    uvloop = importlib.import_module("uvloop")  # it may not be installed
    serving(by_protocol, traffic, address, workers, ready, uvloop.new_event_loop)


def serving(
    serve: Serve, traffic: str, address: Address, workers: int, ready: Ready,
    new_loop: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> None:  # fmt: skip
    listener = listening(traffic, address)
    listener.setblocking(False)

    async def run() -> None:
        server = await serve(listener, traffic == "line")
        ready(listener.getsockname())
        await server.serve_forever()

    def loop() -> None:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(run())

    forked(listener, workers, lambda address: None, loop)


async def by_streams(listener: socket.socket, goes_on: bool) -> asyncio.Server:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line.upper())
            if not goes_on:
                break
        writer.close()

    return await asyncio.start_server(connected, sock=listener)


async def by_protocol(listener: socket.socket, goes_on: bool) -> asyncio.Server:
    class Upper(asyncio.Protocol):
        transport: asyncio.Transport

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = cast(asyncio.Transport, transport)

        def data_received(self, data: bytes) -> None:
            self.transport.write(data.upper())
            if not goes_on:
                self.transport.close()

    return await asyncio.get_running_loop().create_server(Upper, sock=listener)
