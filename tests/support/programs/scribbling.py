"""A handler that overwrites its worker's slot, with anything, or with numbers that a slot might hold."""

import ctypes
import random
import signal
import time
from collections.abc import Iterator

from prefork.metrics.scoreboard import TOLD_TO_DRAIN
from prefork.workers.signals import DRAIN_SIGNAL
from tests.support.programs.served import Who, tell


def mappings(name: str = "prefork-slot") -> Iterator[tuple[int, int]]:
    """The addresses and sizes of the mapped slots, or what has another name, that this process may write."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            if name in line and "rw-s" in line:
                begin, end = (int(number, 16) for number in line.split()[0].split("-"))
                yield begin, end - begin


class Handler(Who):
    def do_mappings(self) -> int:
        return len(list(mappings()))

    def do_scribble(self, seconds: str, kind: str, seed: str) -> int:
        rng = random.Random(int(seed))
        ((begin, size),) = mappings()
        rounds, until = 0, time.monotonic() + float(seconds)
        while time.monotonic() < until:
            if kind == "bytes":
                content = rng.randbytes(size)
            else:  # numbers that a slot might hold
                small = (0, 1, 2, 3, 8, 9, 14, 1000, time.monotonic_ns(), 1 << 63)
                content = b"".join(rng.choice(small).to_bytes(8, "little") for _ in range(size // 8))
            ctypes.memmove(begin, content, size)
            rounds += 1
        return rounds

    def do_scribble_connections(self, seconds: str, seed: str) -> int:
        """The table of connections: where its header and its first rows lie, and where it has the rows in use."""
        rng = random.Random(int(seed))
        ((begin, size),) = mappings("prefork-connections")
        rounds, until = 0, time.monotonic() + float(seconds)
        while time.monotonic() < until:
            ctypes.memmove(begin, rng.randbytes(32768), 32768)
            ctypes.memmove(begin + size - 16384, rng.randbytes(16384), 16384)
            rounds += 1
        return rounds

    def do_clear_when_told(self) -> None:
        """Once the word to drain is there, and before the signal is heard that says so."""
        ((begin, size),) = mappings()
        word = ctypes.c_uint64.from_address(begin + TOLD_TO_DRAIN * 8)
        signal.pthread_sigmask(signal.SIG_BLOCK, {DRAIN_SIGNAL})
        tell("deaf")
        while not word.value:
            time.sleep(0.001)
        ctypes.memset(begin, 0, size)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {DRAIN_SIGNAL})

    def do_fill(self) -> None:
        """With ones: no number that anybody can have meant."""
        ((begin, size),) = mappings()
        ctypes.memset(begin, 0xFF, size)
