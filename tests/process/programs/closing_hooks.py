"""Hooks that tell which connections they close, over any server class."""

from typing import TYPE_CHECKING, Any

import prefork
from tests.support.programs.served import tell

if TYPE_CHECKING:
    _Server = prefork.TCPServer
else:
    _Server = object


class Hooks(_Server):
    def shutdown_request(self, request: Any) -> None:
        tell("shut down", peer=request.getpeername())
        super().shutdown_request(request)


class Accepts(Hooks):
    def get_request(self) -> Any:
        return super().get_request()
