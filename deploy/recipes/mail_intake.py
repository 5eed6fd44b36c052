r"""A mail intake: takes mail over SMTP (RFC 5321), as a relay or an application does that reads what people send it.

    prefork run mail_intake:Intake --bind 127.0.0.1:2525 --proxy-trusted 127.0.0.1 --request-timeout 10min

    # haproxy.cfg; the server speaks first, so HAProxy must not wait for the client
    backend intake
        mode tcp
        server intake1 127.0.0.1:2525 send-proxy-v2

    # by hand, without a proxy and without --proxy-trusted
    printf '%s\r\n' 'MAIL FROM:<a@b.test>' 'RCPT TO:<in@here.test>' DATA hello . QUIT | nc 127.0.0.1 2525

The server says the first word, so a client that says none is none for `first_byte_timeout`; `timeout` of the handler
ends one that has nothing more to say. `client_address` is the client's, whom the proxy has named in the header that
comes before the greeting. A mail is answered with 250 when it lies in the directory MAIL_INTAKE, whole and under its
last name, and not before: one whose worker dies is the client's to send again.
"""

import os
import time
from itertools import count
from pathlib import Path

from prefork import StreamRequestHandler

DIRECTORY = Path(os.environ.get("MAIL_INTAKE", "mail"))
LINE_MAX = 2000  # with the end of the line; RFC 5321, 4.5.3.1
MAIL_MAX = 10_000_000
numbers = count(1)


class Refused(Exception):
    """The answer to a command that is not obeyed."""


class Intake(StreamRequestHandler):
    """A conversation of commands and answers, one line each, but for the text of a mail."""

    timeout = 60.0

    def handle(self) -> None:
        self.sender, self.recipients = "", list[str]()
        self.answer("220 mail intake")
        try:
            while (line := self.rfile.readline(LINE_MAX)) and self.obey(line.decode("ascii", "replace").strip()):
                pass
        except TimeoutError:
            self.answer("421 nothing was said for too long")
        except ConnectionError:
            pass

    def answer(self, text: str) -> None:
        self.wfile.write(text.encode() + b"\r\n")

    def obey(self, line: str) -> bool:
        """Answer a command; return whether the conversation goes on."""
        verb, _, rest = line.partition(" ")
        command = getattr(self, f"do_{verb.lower()}", None)
        try:
            answer = command(rest) if command else "500 no such command"
        except Refused as refused:
            answer = str(refused)
        self.answer(answer)
        return not answer.startswith("221")

    def do_helo(self, name: str) -> str:
        return "250 mail intake"

    def do_ehlo(self, name: str) -> str:
        return f"250-mail intake\r\n250 SIZE {MAIL_MAX}"

    def do_mail(self, rest: str) -> str:
        self.sender, self.recipients = address(rest, "FROM:"), []
        return "250 whom is it for"

    def do_rcpt(self, rest: str) -> str:
        self.recipients.append(address(rest, "TO:"))
        return "250 noted"

    def do_data(self, rest: str) -> str:
        if not self.recipients:
            raise Refused("503 MAIL and RCPT come first")
        self.answer("354 go on, and end with a dot")
        text = self.read_text()
        name = f"{time.time_ns()}.{os.getpid()}.{next(numbers)}"
        DIRECTORY.mkdir(exist_ok=True)
        (DIRECTORY / f".{name}").write_bytes(self.head() + text)
        (DIRECTORY / f".{name}").rename(DIRECTORY / name)
        self.recipients = []
        return f"250 taken as {name}"

    def do_rset(self, rest: str) -> str:
        self.recipients = []
        return "250 forgotten"

    def do_noop(self, rest: str) -> str:
        return "250 yes"

    def do_quit(self, rest: str) -> str:
        return "221 goodbye"

    def read_text(self) -> bytes:
        """The lines until the dot. What is too long is read to its end, or the answer would not be heard."""
        lines, size = [], 0
        while (line := self.rfile.readline(LINE_MAX)) not in (b".\r\n", b".\n"):
            if not line:
                raise ConnectionAbortedError("the client has gone in the middle of a mail")
            size += len(line)
            if size <= MAIL_MAX:
                lines.append(line.removeprefix(b"."))
        if size > MAIL_MAX:
            raise Refused("552 more than is taken")
        return b"".join(lines)

    def head(self) -> bytes:
        """What this server adds: who gave it the mail, and whom it is from and for (RFC 5321, 4.4)."""
        received = f"Return-Path: <{self.sender}>\r\nReceived: from [{self.client_address[0]}]\r\n"
        return (received + "".join(f"Delivered-To: {each}\r\n" for each in self.recipients)).encode()


def address(text: str, word: str) -> str:
    """The address behind FROM: or TO:, without its parameters."""
    given = text[len(word) :].split()[0:1]
    if not text.upper().startswith(word) or not given or given[0][:1] + given[0][-1:] != "<>":
        raise Refused(f"501 {word}<address> was expected")
    return given[0][1:-1]
