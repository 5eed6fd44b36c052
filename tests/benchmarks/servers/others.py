"""Servers that are programs of their own: a loop in C, gunicorn, nginx, Apache, Net::Server::PreFork.

Each is started on a port that was free a moment ago; this process waits beside it. What is not installed is left out.
"""

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ..traffic import BODY, LINE, LOOPBACK, Address, Ready

STARTED_S = 20.0
HERE = Path(__file__).parent

NGINX = """
daemon off; worker_processes {workers}; pid {folder}/pid; error_log /dev/null;
load_module {modules}/ngx_stream_module.so;
events {{}}
stream {{ server {{ listen 127.0.0.1:{port} backlog=1024; ssl_preread on; return "{line}"; }} }}
"""
NGINX_HTTP = """
daemon off; worker_processes {workers}; pid {folder}/pid; error_log /dev/null;
events {{}}
http {{
    access_log off; client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
    uwsgi_temp_path {folder}; scgi_temp_path {folder}; default_type text/plain;
    server {{ listen 127.0.0.1:{port} backlog=1024; return 200 "{body}"; }}
}}
"""
APACHE = """
ServerRoot {folder}
Listen 127.0.0.1:{port}
ServerName localhost
PidFile {folder}/pid
ErrorLog {folder}/log
LogLevel emerg
LoadModule mpm_prefork_module {modules}/mod_mpm_prefork.so
LoadModule authz_core_module {modules}/mod_authz_core.so
LoadModule echo_module {modules}/mod_echo.so
StartServers {workers}
MinSpareServers {workers}
MaxSpareServers {workers}
MaxRequestWorkers {workers}
ListenBacklog 1024
ProtocolEcho On
"""
PERL = """
package Upper; use base "Net::Server::PreFork";
sub process_request {{ while (my $line = <STDIN>) {{ print uc $line; last unless {goes_on}; }} }}
Upper->run(host => "127.0.0.1", port => {port}, min_servers => {workers}, max_servers => {workers} + 1,
    min_spare_servers => 0, max_spare_servers => {workers}, max_requests => 1000000000, log_level => 0, listen => 1024);
"""


def missing(what: str) -> bool:
    """Return whether one of these cannot be had here: commands, and modules of what stands before the colon."""
    for each in what.split():
        kind, _, name = each.partition(":")
        if kind == "module":
            found = importlib.util.find_spec(name) is not None
        elif kind == "perl":
            perl = shutil.which("perl")
            found = (
                perl is not None and not subprocess.run([perl, f"-M{name}", "-e", "1"], capture_output=True).returncode
            )
        else:
            found = shutil.which(kind) is not None and (not name or (modules(kind) / name).exists())
        if not found:
            return True
    return False


def modules(command: str) -> Path:
    """The folder of a command's loadable modules, as Debian has it."""
    return Path(shutil.which(command) or "/usr/sbin/x").parents[1] / "lib" / command / "modules"


def beside(argv: Sequence[str], address: Address, ready: Ready, **popen: Any) -> None:
    """Run a command, and say that it serves when it accepts."""
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, **popen) as process:
        deadline = time.monotonic() + STARTED_S
        while process.poll() is None:
            try:
                with socket.create_connection(address, 1):  # type: ignore[arg-type]  # never a path
                    break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        if process.poll() is None:
            ready(address)
        process.wait()


def free_port() -> int:
    with socket.create_server(LOOPBACK) as listener:
        port: int = listener.getsockname()[1]
        return port


def in_c(traffic: str, address: Address, workers: int, ready: Ready) -> None:
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/loop"
        subprocess.run(["cc", "-O2", "-o", program, HERE / "loop.c"], check=True)
        with subprocess.Popen([program, str(workers)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            ready(("127.0.0.1", int(process.stdout.readline())))
            process.wait()


def gunicorn(traffic: str, address: Address, workers: int, ready: Ready, worker_class: str, *more: str) -> None:
    port = free_port()
    options = [
        "--workers",
        str(workers),
        "--worker-class",
        worker_class,
        "--backlog",
        "1024",
        "--log-level",
        "critical",
        *more,
    ]
    if worker_class == "gthread":
        options += ["--threads", "10"]
    argv = [sys.executable, "-m", "gunicorn", f"{__name__}:application", "--bind", f"127.0.0.1:{port}", *options]
    beside(argv, ("127.0.0.1", port), ready)


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """The same answer as a WSGI application."""
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(BODY)))])
    return [BODY]


def written(template: str, argv: Sequence[str], ready: Ready, workers: int, command: str = "", **more: Any) -> None:
    """Run a server with a configuration of its own: the argument {file}."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # its workers may be somebody else
        file = Path(folder) / "configuration"
        file.write_text(template.format(port=port, folder=folder, workers=workers, modules=modules(command), **more))
        beside([word.format(file=file, folder=folder) for word in argv], ("127.0.0.1", port), ready)


def nginx(traffic: str, address: Address, workers: int, ready: Ready) -> None:
    argv = ["nginx", "-e", "/dev/null", "-c", "{file}"]
    template = NGINX_HTTP if traffic == "http" else NGINX
    line, body = (text.decode().replace("\n", "\\n") for text in (LINE, BODY))
    written(template, argv, ready, workers, "nginx", line=line, body=body)


def apache(traffic: str, address: Address, workers: int, ready: Ready) -> None:
    written(APACHE, ["apache2", "-D", "FOREGROUND", "-f", "{file}"], ready, workers, "apache2")


def perl(traffic: str, address: Address, workers: int, ready: Ready) -> None:
    written(PERL, ["perl", "{file}"], ready, workers, goes_on=int(traffic == "line"))
