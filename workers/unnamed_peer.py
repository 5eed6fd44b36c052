"""The address of a client that has none: a Unix socket that is bound to no path.

Pure. Stands here because such an address also comes back from a queue of kept connections.
"""

from typing import Any


class UnnamedPeer(str):
    """The address of a Unix client without one: empty, and so is its host, for which http.server asks."""

    __slots__ = ()

    def __getitem__(self, key: Any) -> str:
        return super().__getitem__(key) if isinstance(key, slice) else ""


UNNAMED = UnnamedPeer()
