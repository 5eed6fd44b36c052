"""A service that speaks the Redis protocol: PING, ECHO, SET, GET, INCR, DEL, over a store that all workers share.

    prefork run redis_service:Redis --bind 127.0.0.1:6380 --graceful-timeout 10s

    redis-cli -p 6380 incr visits
    redis-benchmark -p 6380 -t ping,set,get,incr -c 10 -n 10000

Any Redis client library talks to it. Workers are processes: a dict in one is not seen by the others, and is gone with
it. So the values are in SQLite (REDIS_SERVICE_FILE, default redis_service.db), which keeps INCR exact over all workers,
reloads and `kill -9`: what was answered is stored. Clients keep their connections, hence the threads; when a worker is
to leave, `drain_connections` ends them after the command in hand, and clients connect again.
"""

import os
import sqlite3
from collections.abc import Callable

from prefork import PreForkingMixIn, StreamRequestHandler, ThreadingTCPServer

FILE = os.environ.get("REDIS_SERVICE_FILE", "redis_service.db")
COMMAND_SIZE_MAX = 1 << 20
INCR = """
INSERT INTO store VALUES (?, '1') ON CONFLICT (key) DO UPDATE SET value = CAST(value AS INTEGER) + 1
WHERE CAST(CAST(value AS INTEGER) AS TEXT) = CAST(value AS TEXT) RETURNING value
"""


class Wrong(Exception):
    """What the client is told after -ERR."""


class Commands(StreamRequestHandler):
    """Reads commands, answers each. One connection to the store for each client: nothing is shared between threads."""

    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.store = sqlite3.connect(FILE, timeout=10, isolation_level=None)
        self.store.execute("PRAGMA synchronous = NORMAL")  # WAL: survives the death of a process, not of the machine

    def finish(self) -> None:
        self.store.close()
        super().finish()

    def handle(self) -> None:
        while command := self.read_command():
            try:
                name, *args = command
                reply = COMMANDS[name.upper()](self, *args)
            except KeyError:
                reply = b"-ERR unknown command\r\n"
            except TypeError:
                reply = b"-ERR wrong number of arguments\r\n"
            except Wrong as exc:
                reply = b"-ERR %s\r\n" % str(exc).encode()
            self.wfile.write(reply)

    def read_command(self) -> list[bytes]:
        """A command as an array of strings, or as words on a line; empty at the end of the connection."""
        line = self.rfile.readline(COMMAND_SIZE_MAX)
        if not line.startswith(b"*"):
            return line.split()
        return [self.read_string() for _ in range(int(line[1:]))]

    def read_string(self) -> bytes:
        size = int(self.rfile.readline(COMMAND_SIZE_MAX)[1:])
        if size > COMMAND_SIZE_MAX:
            raise ValueError(f"a string of {size} bytes")
        return self.rfile.read(size + 2)[:-2]

    def ping(self, text: bytes = b"") -> bytes:
        return bulk(text) if text else b"+PONG\r\n"

    def echo(self, text: bytes) -> bytes:
        return bulk(text)

    def set(self, key: bytes, value: bytes) -> bytes:
        self.store.execute("INSERT OR REPLACE INTO store VALUES (?, ?)", (key, value))
        return b"+OK\r\n"

    def get(self, key: bytes) -> bytes:
        row = self.store.execute("SELECT value FROM store WHERE key = ?", (key,)).fetchone()
        return bulk(as_bytes(row[0])) if row else b"$-1\r\n"

    def incr(self, key: bytes) -> bytes:
        rows = self.store.execute(INCR, (key,)).fetchall()  # all of them: that ends the transaction
        if not rows:
            raise Wrong("value is not an integer")
        return b":%d\r\n" % int(rows[0][0])

    def delete(self, *keys: bytes) -> bytes:
        return b":%d\r\n" % sum(self.store.execute("DELETE FROM store WHERE key = ?", (k,)).rowcount for k in keys)


COMMANDS: dict[bytes, Callable[..., bytes]] = {
    b"PING": Commands.ping, b"ECHO": Commands.echo, b"SET": Commands.set, b"GET": Commands.get,
    b"INCR": Commands.incr, b"DEL": Commands.delete,
}  # fmt: skip


def bulk(text: bytes) -> bytes:
    return b"$%d\r\n%s\r\n" % (len(text), text)


def as_bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


class Redis(PreForkingMixIn, ThreadingTCPServer):
    """A pool with threads. The master makes the store, once, before the first worker."""

    RequestHandlerClass = Commands
    max_children = 2
    max_threads = 50
    drain_connections = "eof"

    def server_activate(self) -> None:
        store = sqlite3.connect(FILE)
        store.execute("PRAGMA journal_mode = WAL")  # readers and a writer at once
        store.execute("CREATE TABLE IF NOT EXISTS store (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID")
        store.close()
        super().server_activate()
