"""Impacket's SMB server with its threads, from a pool; Samba's smbclient gets a file from it."""

import configparser
import subprocess
from typing import Any

from impacket.smbserver import SMBSERVER

from prefork import PreForkingMixIn

from .shared_files import shared

HUNG = 30.0  # seconds; never reached unless something hangs


class Server(PreForkingMixIn, SMBSERVER):
    pass


def server(address: tuple[str, int]) -> Any:
    folder = shared("file", "of the share")
    settings = configparser.ConfigParser()
    settings.read_dict({
        "global": {
            "server_name": "SERVER", "server_os": "UNIX", "server_domain": "GROUP", "log_file": "None",
            "credentials_file": "", "challenge": "4141414141414141", "SMB2Support": "True",
        },
        "IPC$": {"comment": "", "read only": "yes", "share type": "3", "path": ""},
        "SHARE": {"comment": "", "read only": "yes", "share type": "0", "path": str(folder)},
    })  # fmt: skip
    made = Server(address, config_parser=settings)
    made.processConfigFile()
    return made


def ask(host: str, port: int) -> None:
    command = ["smbclient", f"//{host}/SHARE", "-p", str(port), "-N", "-t", "20", "-c", "get file -"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HUNG)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "of the share" in done.stdout, done.stdout
