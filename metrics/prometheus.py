"""The value class that keeps the user's prometheus_client metrics in this process's region, and how it gets there.

Runs in every process of a service, and in any program that imports prefork: nothing here imports prometheus_client;
a hook on `sys.meta_path` sets the class when somebody else first does. Owns where the values of this process are:

    alone               each value in memory of its own, like prometheus_client's
    adopt(region)       in the master's region, with what they have so far
    begin(region)       in a new child's region, from zero: what they had is in the region of the parent
    any other fork      alone, from zero: nobody writes in another process's region
    release()           alone again, with what they have

Values go to a new child's region when they are first touched there, the series of one histogram or summary together.
"""

import logging
import os
import sys
import threading
from array import array
from collections.abc import MutableSequence, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any
from weakref import WeakSet, ref

from .application import Writer
from .series import RULES, SUFFIXES, Rule, encode

log = logging.getLogger("prefork.metrics")

VALUES = "prometheus_client.values"
OURS = "prefork_"  # how our own metrics begin


class _Home:
    """Where the values of this process go. One object for each time that changes."""

    def __init__(self, memory: memoryview | None) -> None:
        self.writer = Writer(memory) if memory is not None else None
        self.said_full = False


_home = _Home(None)
_groups: WeakSet["_Group"] = WeakSet()
_opened: dict[tuple[str, tuple[str, ...]], "_Group"] = {}  # histograms and summaries that are being built
_refused: set[str] = set()
# Entered again by a signal handler or a destructor that counts: it must not wait for itself.
_lock = threading.RLock()


class _Group:
    """The values of one series, or of one histogram or summary: they go to a region together, or not at all."""

    def __init__(self, family: bytes) -> None:
        self.family = family
        self.keys: list[bytes] = []
        self.values: list[ref[Value]] = []

    def add(self, key: bytes, value: "Value") -> None:
        self.keys.append(key)
        self.values.append(ref(value))

    def settle(self, home: _Home, carry: bool) -> bool:
        """Bring the values to `home`, with what they have or from zero. False when it has no room."""
        places = home.writer.place(self.family, self.keys) if home.writer is not None else None
        for index, reference in enumerate(self.values):
            value = reference()
            if value is not None and value._home is not home:
                if home.writer is None or places is None:
                    value._move(home, array("d", (0.0, 0.0)), 0, carry)
                else:
                    value._move(home, home.writer.cells, places[index], carry)
        return places is not None or home.writer is None
