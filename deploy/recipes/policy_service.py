"""A Postfix policy service: says of each recipient, before the mail is sent, whether to take it (SMTPD_POLICY_README).

    prefork run policy_service:Policy --bind 127.0.0.1:10040 --request-timeout 30s --keepalive-timeout 10m

    # main.cf
    smtpd_recipient_restrictions = reject_unauth_destination, check_policy_service inet:127.0.0.1:10040

    # by hand; an empty line ends the question
    printf 'request=smtpd_access_policy\nsender=spam@blocked.example\n\n' | nc -N 127.0.0.1 10040

Postfix keeps the connection of each smtpd for many questions, with five minutes between two of them at most, and asks
again on a new connection when one ends: a worker that dies costs no mail, and a reload not even a connection. A worker
has a connection for as long as its question takes; a hundred smtpds need no hundred workers. When no answer comes at
all, Postfix defers (`smtpd_policy_service_default_action`).

POLICY_BLOCKED, comma-separated, are the sender domains that are refused; read when the module is imported, so that a
reload takes a new list from a file, or from a database, in a service of your own.
"""

import os

from prefork import KeepAliveMixIn, StreamRequestHandler

BLOCKED = frozenset(os.environ.get("POLICY_BLOCKED", "blocked.example").split(","))
TAGGED = "PREPEND X-Policy: seen"
LINE_SIZE_MAX = 2048


def decide(attributes: dict[str, str]) -> str:
    """An action as in access(5). Yours goes here: quotas, greylisting, reputation."""
    if attributes.get("request") != "smtpd_access_policy":
        return "DUNNO"  # a question this service was not made for
    domain = attributes.get("sender", "").rpartition("@")[2].lower()
    if domain in BLOCKED:
        return f"REJECT no mail from {domain}"
    return TAGGED if attributes.get("protocol_state") == "RCPT" else "DUNNO"


class Policy(KeepAliveMixIn, StreamRequestHandler):
    """A question of name=value lines, ended by an empty line, and its answer; then the next one."""

    @staticmethod
    def complete(data: bytes) -> bool:
        return b"\n\n" in data.replace(b"\r", b"")

    def handle_one_request(self) -> None:
        attributes = self.read_attributes()
        if attributes:
            self.wfile.write(f"action={decide(attributes)}\n\n".encode())
        self.close_connection = not attributes

    def read_attributes(self) -> dict[str, str]:
        """One question; nothing at the end of the connection."""
        attributes = {}
        while line := self.rfile.readline(LINE_SIZE_MAX).decode("utf-8", "replace").rstrip("\r\n"):
            name, _, value = line.partition("=")
            attributes[name] = value
        return attributes
