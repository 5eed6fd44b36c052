"""A service that speaks the Redis protocol: PING, ECHO, SET, GET, INCR, DEL, over a store that all workers share.

    prefork run redis_service:Redis --bind 127.0.0.1:6380

    redis-cli -p 6380 incr visits
    redis-benchmark -p 6380 -t ping,set,get,incr -c 10 -n 10000
    python -c "import redis; print(redis.Redis(port=6380, db=1).incr('visits'))"

Any Redis client library talks to it. Workers are processes: a dict in one is not seen by the others, and is gone with
it. So the values are in SQLite (REDIS_SERVICE_FILE, default redis_service.db), which keeps INCR exact over all workers,
reloads and `kill -9`: what was answered is stored. Such clients keep a pool of connections and say nothing on most of
them. A worker has one for a command at a time, and what the client has chosen for it (SELECT, HELLO) is
in `self.state`: so no reload ends one, and the next command may be answered by any worker, of the new code too.
"""

import os
import sqlite3
from collections.abc import Callable

from prefork import KeepAliveMixIn, PreForkingTCPServer, StreamRequestHandler

FILE = os.environ.get("REDIS_SERVICE_FILE", "redis_service.db")
COMMAND_SIZE_MAX = 1 << 20
TABLE = "store (base INTEGER, key BLOB, value BLOB, PRIMARY KEY (base, key)) WITHOUT ROWID"
INCR = """
INSERT INTO store VALUES (?, ?, ?3) ON CONFLICT (base, key) DO UPDATE SET value = CAST(value AS INTEGER) + ?3
WHERE CAST(CAST(value AS INTEGER) AS TEXT) = CAST(value AS TEXT) RETURNING value
"""


class Commands(KeepAliveMixIn, StreamRequestHandler):
    """Reads a command, answers it."""

    timeout = 5.0  # seconds for the rest of a command that has begun

    def connection_opened(self) -> None:
        self.state = {"base": 0, "protocol": 2}

    def handle_one_request(self) -> None:
        command = self.read_command()
        if command:
            self.wfile.write(self.answer(*command))
        self.close_connection = command is None

    def answer(self, name: bytes, *args: bytes) -> bytes:
        try:
            return COMMANDS[name.upper()](self, *args)
        except KeyError:
            return b"-ERR unknown command\r\n"
        except TypeError:
            return b"-ERR wrong number of arguments\r\n"
        except ValueError as exc:
            return b"-ERR %s\r\n" % str(exc).encode()

    def read_command(self) -> list[bytes] | None:
        """A command as an array of strings, or as words on a line; None at the end of the connection."""
        line = self.rfile.readline(COMMAND_SIZE_MAX)
        if not line.startswith(b"*"):
            return line.split() if line else None
        return [self.read_string() for _ in range(int(line[1:]))]

    def read_string(self) -> bytes:
        size = int(self.rfile.readline(COMMAND_SIZE_MAX)[1:])
        if size > COMMAND_SIZE_MAX:
            raise ValueError(f"a string of {size} bytes")
        return self.rfile.read(size + 2)[:-2]

    def ping(self, text: bytes = b"") -> bytes:
        return bulk(text) if text else b"+PONG\r\n"

    def select(self, base: bytes) -> bytes:
        self.state["base"] = int(base)
        return b"+OK\r\n"

    def hello(self, protocol: bytes = b"", *args: bytes) -> bytes:
        """How a client library begins: which version of the protocol it would speak."""
        if args or protocol not in (b"", b"2", b"3"):
            raise ValueError("NOPROTO unsupported protocol version")
        self.state["protocol"] = version = int(protocol or self.state["protocol"])
        start = b"%2\r\n" if version == 3 else b"*4\r\n"
        return start + bulk(b"server") + bulk(b"redis") + bulk(b"proto") + b":%d\r\n" % version

    def set(self, key: bytes, value: bytes) -> bytes:
        self.execute("INSERT OR REPLACE INTO store VALUES (?, ?, ?)", key, value)
        return b"+OK\r\n"

    def get(self, key: bytes) -> bytes:
        rows = self.execute("SELECT value FROM store WHERE base = ? AND key = ?", key)
        return bulk(rows[0][0]) if rows else b"_\r\n" if self.state["protocol"] == 3 else b"$-1\r\n"

    def incr(self, key: bytes, by: bytes = b"1") -> bytes:
        rows = self.execute(INCR, key, int(by))
        if not rows:
            raise ValueError("value is not an integer")
        return b":%d\r\n" % int(rows[0][0])

    def delete(self, *keys: bytes) -> bytes:
        deleted = (self.execute("DELETE FROM store WHERE base = ? AND key = ? RETURNING 1", key) for key in keys)
        return b":%d\r\n" % sum(map(len, deleted))

    def execute(self, statement: str, *values: object) -> list[tuple[object, ...]]:
        """In the base that the client has selected; all rows, which ends the transaction."""
        rows: list[tuple[object, ...]] = self.server.store.execute(statement, (self.state["base"], *values)).fetchall()
        return rows


COMMANDS: dict[bytes, Callable[..., bytes]] = {
    b"PING": Commands.ping, b"ECHO": lambda self, text: bulk(text), b"HELLO": Commands.hello,
    b"SELECT": Commands.select, b"SET": Commands.set, b"GET": Commands.get, b"INCR": Commands.incr,
    b"INCRBY": Commands.incr, b"DEL": Commands.delete,
}  # fmt: skip


def bulk(value: object) -> bytes:
    text = value if isinstance(value, bytes) else str(value).encode()
    return b"$%d\r\n%s\r\n" % (len(text), text)


class Redis(PreForkingTCPServer):
    """The master makes the store, once, before the first worker; each worker opens it for itself."""

    RequestHandlerClass = Commands
    keepalive_timeout = 3600.0  # pools of clients keep theirs

    def server_activate(self) -> None:
        store = sqlite3.connect(FILE)
        store.execute("PRAGMA journal_mode = WAL")  # readers and a writer at once
        store.execute(f"CREATE TABLE IF NOT EXISTS {TABLE}")
        store.close()
        super().server_activate()

    def worker_started(self) -> None:
        self.store = sqlite3.connect(FILE, timeout=10, isolation_level=None)
        self.store.execute("PRAGMA synchronous = NORMAL")  # WAL: survives the death of a process, not of the machine

    def worker_stopping(self) -> None:
        self.store.close()
