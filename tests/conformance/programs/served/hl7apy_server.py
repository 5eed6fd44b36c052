"""hl7apy's MLLP server with its threads, from a pool; asked as a laboratory's device does."""

import socket
from typing import Any

from hl7apy.core import Message
from hl7apy.mllp import AbstractHandler, MLLPServer
from hl7apy.parser import parse_message

from prefork import PreForkingMixIn

HUNG = 30.0  # seconds; never reached unless something hangs
QUERY = (
    "MSH|^~\\&|REC APP|REC FAC|SEND APP|SEND FAC|20110708163513||QBP^Q22^QBP_Q21|111069|D|2.5|||||ITA||EN\r"
    "QPD|IHE PDQ Query|111069|@PID.5.2^SMITH||||\r"
    "RCP|I|\r"
)


class Query(AbstractHandler):
    def reply(self) -> str:
        asked = parse_message(self.incoming_message)
        answer = Message("RSP_K21")
        answer.MSH.MSH_9 = "RSP^K22^RSP_K21"
        answer.MSA = f"MSA|AA|{asked.MSH.MSH_10.to_er7()}"
        return str(answer.to_mllp())


class Server(PreForkingMixIn, MLLPServer):
    pass


def server(address: tuple[str, int]) -> Any:
    return Server(*address, {"QBP^Q22^QBP_Q21": (Query,)})


def ask(host: str, port: int) -> None:
    with socket.create_connection((host, port), HUNG) as connection:
        connection.sendall(f"\x0b{QUERY}\x1c\r".encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert b"MSA|AA|111069" in answer, answer
