"""The mailbox: every command that the master has been given and no turn has obeyed yet.

Runs in the process that serves. Anybody posts: a signal handler, another thread, the control socket, a child's word in
its slot. The supervisor alone takes, in its turns.
"""

from collections import deque
from collections.abc import Callable

from ..commands import Command


class Mailbox:
    """Commands in the order in which they were posted. Takes no lock, so that a signal handler may post."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._commands: deque[Command] = deque()
        self._wake = wake

    def post(self, command: Command) -> None:
        """Ask for this; the supervisor's wait ends, and its next turn obeys."""
        self._commands.append(command)
        self._wake()

    def take(self) -> Command | None:
        """Return the oldest command, which is the caller's to obey; None when there is none."""
        return self._commands.popleft() if self._commands else None

    def __bool__(self) -> bool:
        return bool(self._commands)
