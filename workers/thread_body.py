"""The program's `process_request_thread`: what threads and executors are started for, by our mix-in or the program.

Runs in any process that serves in threads. On the server object, under that name, each request finds a Carrier of its
own while it is passed on (contexts.py); otherwise there is what the program has there. That may change while it serves.
"""

from collections.abc import Callable
from typing import Any

from .definitions import evaluated, of_class, put

THREAD_BODY = "process_request_thread"


class ThreadBody:
    """The thread body of one server, and what stands for it on the object until `leave()`."""

    def __init__(self, server: Any) -> None:
        self._own = vars(server).get(THREAD_BODY)  # the object's; None if there is only the class's
        self._noted = getattr(type(server), THREAD_BODY, None)
        self.process: Callable[..., Any] = evaluated(server, THREAD_BODY)
        put(server, THREAD_BODY, self.process)

    def carry(self, server: Any, carrier: object) -> None:
        """Have this stand for the body until `carried()`."""
        attributes = vars(server)
        if attributes.get(THREAD_BODY) is not self.process:  # the program has put another one there since
            self._own = self.process = server.process_request_thread
        elif self._own is None and getattr(type(server), THREAD_BODY, None) is not self._noted:  # or into its class
            self.process, self._noted = of_class(server, THREAD_BODY), getattr(type(server), THREAD_BODY, None)
        attributes[THREAD_BODY] = carrier

    def carried(self, server: Any) -> None:
        vars(server)[THREAD_BODY] = self.process  # so that the carrier is gone, unless somebody has taken it

    def leave(self, server: Any) -> None:
        """Put back what the object had of its own; what the program has put there meanwhile stays."""
        attributes = vars(server)
        if attributes.get(THREAD_BODY) is self.process:
            del attributes[THREAD_BODY]
            if self._own is not None:
                attributes[THREAD_BODY] = self._own
