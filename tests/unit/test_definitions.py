"""Whose definition a server has, told from the class that has it."""

import socketserver
from typing import Any

import pytest

import prefork
from prefork.workers.definitions import is_the_programs


class Mine(prefork.ThreadingTCPServer):
    def verify_request(self, *args: Any) -> bool:
        return True


class Over(prefork.PreForkingMixIn, socketserver.ThreadingTCPServer):
    pass


@pytest.mark.parametrize(
    ("cls", "name", "theirs"),
    [
        (Mine, "verify_request", True), (Mine, "process_request", False), (Mine, "process_request_thread", False),
        (Over, "process_request", False), (Over, "process_request_thread", False), (Over, "get_request", False),
        (prefork.PreForkingTCPServer, "process_request", False),
        (prefork.PreForkingTCPServer, "process_request_thread", False),  # which it has not at all
    ],
)  # fmt: skip
def test_the_program_defines_it(cls: Any, name: str, theirs: bool) -> None:
    """A name is the program's where the nearest definition is: in a class that is neither ours nor the standard
    library's, or on the object."""
    server = cls.__new__(cls)
    assert is_the_programs(server, name) is theirs
    vars(server)[name] = len
    assert is_the_programs(server, name)
