"""The mailbox: the commands that the master has been given and no turn has obeyed yet.

Runs in the process that serves. Anybody may post: a signal handler, another thread, the control socket, a child's
request in its slot. Only the supervisor takes, in its turns.
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
        """Append a command and end the supervisor's wait; its next turn obeys."""
        self._commands.append(command)
        self._wake()

    def take(self) -> Command | None:
        """Remove and return the oldest command, which the caller must obey; None when there is none."""
        return self._commands.popleft() if self._commands else None

    def __bool__(self) -> bool:
        return bool(self._commands)
