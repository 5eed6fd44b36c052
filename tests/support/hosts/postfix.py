"""A real Postfix of the test's own: its configuration, queue and port on loopback, mail thrown away.

Runs in the test's process; needs root, as Postfix does. Owns the master and what it forks: one session, all of it
ended at the end of the block.
"""

import contextlib
import smtplib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from shutil import chown
from tempfile import TemporaryDirectory
from threading import Event
from time import monotonic

from tests.support.clients.connections import free_port
from tests.support.programs.service import HUNG, kill_session

MASTER = "/usr/lib/postfix/sbin/master"
MAIN = """\
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
mail_owner = postfix
setgid_group = postdrop
daemon_directory = /usr/lib/postfix/sbin
command_directory = /usr/sbin
shlib_directory = /usr/lib/postfix
meta_directory = /etc/postfix
maillog_file = /dev/stdout
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
myhostname = here.test
mydestination = here.test
local_recipient_maps =
alias_maps =
local_transport = discard
default_transport = discard
smtpd_relay_restrictions = permit_mynetworks, reject_unauth_destination
smtpd_recipient_restrictions = {restriction}
"""
SERVICES = """\
127.0.0.1:{port} inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
discard unix - - n - - discard
error unix - - n - - error
anvil unix - - n - 1 anvil
proxymap unix - - n - - proxymap
postlog unix-dgram n - n - 1 postlogd
"""


@contextlib.contextmanager
def postfix(restriction: str) -> Iterator[int]:
    """One that asks `restriction` about every recipient; its SMTP port."""
    # Not below a test's own folder, which root keeps for itself: Postfix works as another user.
    with TemporaryDirectory(dir="/var/tmp", prefix="prefork-test-") as name:
        Path(name).chmod(0o755)
        with _running(Path(name), free_port(), restriction) as port:
            yield port


@contextlib.contextmanager
def _running(folder: Path, port: int, restriction: str) -> Iterator[int]:
    for name in ("etc", "queue", "data"):
        (folder / name).mkdir()
    chown(folder / "data", "postfix")
    (folder / "etc/main.cf").write_text(MAIN.format(folder=folder, restriction=restriction))
    (folder / "etc/master.cf").write_text(SERVICES.format(port=port))
    subprocess.run(["/usr/sbin/postfix", "-c", folder / "etc", "check"], check=True, timeout=HUNG)
    with (folder / "log").open("w") as log:
        master = subprocess.Popen(
            [MASTER, "-c", folder / "etc", "-d"], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
        try:
            _wait_serving(port, folder / "log")
            yield port
        finally:
            master.terminate()
            master.wait(HUNG)
            kill_session(master.pid)


def _wait_serving(port: int, log: Path) -> None:
    """Until it greets."""
    deadline = monotonic() + HUNG
    while True:
        with contextlib.suppress(OSError, smtplib.SMTPException), smtplib.SMTP("127.0.0.1", port, timeout=HUNG):
            return
        assert monotonic() < deadline, f"hung: no greeting from postfix:\n{log.read_text()}"
        Event().wait(0.1)  # it tells nobody when it listens
