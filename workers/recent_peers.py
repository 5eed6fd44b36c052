"""Recent peers: the clients from which datagrams came last, by the plain addresses that a program may make of theirs.

Runs where datagrams are received and answered. A client's address says by itself how it is to be answered; a handler
that takes it apart and puts it together again has lost that, and finds it here.
"""

from typing import Any

REMEMBERED_AT_LEAST = 128  # remembered for certain; at times twice as many

Key = tuple[int, Any, Any]


class RecentPeers:
    """Addresses, each under a descriptor and its first two parts: `(host, port)` means `(host, port, 0, 0)` as well.

    A path counts as a host.
    """

    def __init__(self) -> None:
        self._now: dict[Key, Any] = {}
        self._before: dict[Key, Any] = {}

    def note(self, fd: int, address: Any, peer: Any) -> None:
        """Remember `peer` as what is behind this address. Threads may do so at once."""
        self._now[(fd, address[0], address[1]) if isinstance(address, tuple) else (fd, address, None)] = peer
        if len(self._now) >= REMEMBERED_AT_LEAST:
            self._before, self._now = self._now, {}

    def find(self, fd: int, address: Any) -> Any:
        """Return what is behind the address; None if it is not known, or is none."""
        if isinstance(address, str):
            key: Key = (fd, address, None)
        elif isinstance(address, tuple) and len(address) >= 2:
            key = fd, address[0], address[1]
        else:
            return None
        found = self._now.get(key)
        return self._before.get(key) if found is None else found
