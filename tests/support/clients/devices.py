"""A thousand devices of deploy/recipes/device_gateway.py: each stays connected, and sends a reading now and then.

`Fleet` runs in the test's process and starts them all in a process of their own (`python -m
tests.support.clients.devices`), so that they do not share the test's interpreter. A device that loses its connection
connects again and sends once more what has not been answered. What the gateway says wrongly is an error there, and ends
all.
"""

import asyncio
import hmac
import json
import random
import resource
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

HUNG = 60.0  # seconds; never reached unless something hangs
ROOT = Path(__file__).parents[3]
SECRET = b"a secret"
IN_PIECES = 10  # one device in so many has a line on which a reading arrives in two pieces


@dataclass
class Device:
    """A device. Its readings are numbered: `acknowledged` is the last one that the gateway has answered."""

    name: str
    in_pieces: bool
    acknowledged: int = 0
    connections: int = 0
    sent_again: list[int] = field(default_factory=list)  # readings

    async def run(self, port: int, pause: float, enough: asyncio.Event, begun: "asyncio.Semaphore") -> None:
        """Send readings until it is enough, and then `bye`, on a connection that is there."""
        while True:
            try:
                await self._stay_connected(port, pause, enough, begun)
                return
            except (ConnectionError, asyncio.IncompleteReadError):
                self.sent_again.append(self.acknowledged + 1)

    async def _stay_connected(
        self, port: int, pause: float, enough: asyncio.Event, begun: "asyncio.Semaphore"
    ) -> None:  # fmt: skip
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        first = self.connections == 0
        self.connections += 1
        try:
            challenge = (await reader.readuntil(b"\n")).removeprefix(b"hello ").strip()
            code = hmac.digest(SECRET, challenge, "sha256").hex()
            await self._ask(reader, writer, f"login {self.name} {code}", "ok")
            answered = 0
            while not enough.is_set():
                answered += 1
                await self._ask(reader, writer, f"level {self.acknowledged + 1}", f"ok {answered}")
                self.acknowledged += 1
                if first:
                    begun.release()
                    first = False
                await _wait(enough, random.uniform(0, 2 * pause))
            await self._ask(reader, writer, "bye", "bye")
        finally:
            writer.close()

    async def _ask(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: str, expected: str
    ) -> None:  # fmt: skip
        half = len(line) // 2 if self.in_pieces else 0
        if half:
            writer.write(line[:half].encode())
            await asyncio.sleep(random.uniform(0.01, 0.3))  # of the line on which it sends
        writer.write(line[half:].encode() + b"\n")
        answer = (await reader.readuntil(b"\n")).decode().rstrip()
        assert answer == expected, f"{self.name} said {line!r}, and was answered {answer!r}, not {expected!r}"


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        pass


async def _fleet(port: int, count: int, pause: float) -> list[Device]:
    devices = [Device(f"d{number}", number % IN_PIECES == 0) for number in range(count)]
    enough, begun = asyncio.Event(), asyncio.Semaphore(0)
    async with asyncio.TaskGroup() as group:
        for device in devices:
            group.create_task(device.run(port, pause, enough, begun))
        for _ in devices:
            await begun.acquire()
        print("all are connected", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        enough.set()
    return devices


class Fleet:
    """The devices, until the end of the block. Afterwards `devices` are there."""

    def __init__(self, port: int, count: int, pause: float) -> None:
        """`pause` is the mean of the seconds between two readings of a device."""
        self.devices: list[Device] = []
        self._argv = [sys.executable, "-m", "tests.support.clients.devices", str(port), str(count), str(pause)]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )  # fmt: skip
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line == "all are connected\n", "a device has failed, which the captured stderr tells"
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        try:
            output, _ = self._process.communicate(timeout=HUNG)  # closes its stdin, which tells it that it is enough
        finally:
            self._process.kill()
            self._process.wait()
        if kind is None:
            assert self._process.returncode == 0, "a device has failed, which the captured stderr tells"
            self.devices = [Device(**each) for each in json.loads(output)]


def main(port: str, count: str, pause: str) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print(json.dumps([vars(device) for device in asyncio.run(_fleet(int(port), int(count), float(pause)))]))


if __name__ == "__main__":
    main(*sys.argv[1:])
