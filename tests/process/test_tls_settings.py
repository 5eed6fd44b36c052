"""TLS as a setting: real clients, bad clients, client certificates, resumed sessions, certificates that change."""

import contextlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.clients.connections import HUNG, Connection, dial, free_port
from tests.support.clients.controlling import asked, ctl
from tests.support.hosts.namespaces import listening
from tests.support.programs.command import ROOT, running
from tests.support.programs.releases import Released, scraped
from tests.support.programs.service import Service, script
from tests.support.tools.certificates import CERTIFICATE, KEY, client_context, make_certificate

PROGRAM = "from tests.process.programs.tls_told import {handler} as Handler\n"
CASES = {
    "ours": ("Ours", "PreForkingTCPServer"),
    "threads": ("Ours", "PreForkingMixIn, ThreadingTCPServer"),
    "the standard threads": ("Standard", "PreForkingMixIn, socketserver.ThreadingTCPServer"),
    "forked ahead": ("Ours", "PreForkingMixIn, ForkingTCPServer"),
    "standard": ("Standard", "PreForkingMixIn, socketserver.TCPServer"),
}
FILES = {"tls_certificate": CERTIFICATE, "tls_key": KEY}


def program(case: str = "ours", more: str = "", **settings: Any) -> str:
    handler, bases = CASES[case]
    return script(PROGRAM.format(handler=handler) + more, bases=bases, **FILES, **settings)


def secured(service: Service, context: ssl.SSLContext | None = None, **options: Any) -> Connection:
    context = context or client_context(service.directory, certified=False)
    sock = dial(service.address)
    return Connection(context.wrap_socket(sock, server_hostname="localhost", suppress_ragged_eofs=False, **options))


def answered(service: Service) -> None:
    """A client that trusts the certificate on the disk."""
    with secured(service) as client:
        assert client.ask(b"hello").endswith(b" hello")


def closed(sock: socket.socket) -> None:
    with Connection(sock) as client, contextlib.suppress(ConnectionResetError):
        client.sock.settimeout(HUNG)
        while client.sock.recv(4096):  # an alert of TLS, which is no answer
            pass


@pytest.mark.parametrize("case", CASES)
def test_good_and_bad_clients(case: str, tmp_path: Path) -> None:
    """A good one is answered, and told the end; plain text and an old version are closed and counted."""
    make_certificate(tmp_path)
    more: dict[str, Any] = {"tls_alpn": "told, other", "tls_minimum_version": "1.3"}
    with Service(tmp_path, program(case, max_children=2, **more)) as service:
        service.wait_ready(2)
        context = client_context(tmp_path, certified=False)
        context.set_alpn_protocols(["unknown", "other"])
        with secured(service, context) as client:
            assert client.ask(b"hello") == b"TLSv1.3 other - hello"
            client.wait_end()  # which raises if it was not told
        plain = dial(service.address)
        plain.sendall(b"GET / HTTP/1.0\r\n\r\n")
        closed(plain)
        old = client_context(tmp_path, certified=False)
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(ssl.SSLError):
            secured(service, old)
        found = service.settled()
        assert (found["completed"], found["rejected"], found["failed"]) == (1, 2, 0)
        assert "closed: the TLS handshake failed: http request" in service.log
        assert "Traceback" not in service.log


@pytest.mark.parametrize("case", CASES)
def test_clients_that_do_not_shake_hands_in_time(case: str, tmp_path: Path) -> None:
    """Silence and half a handshake are closed at the deadline, and counted."""
    make_certificate(tmp_path)
    with Service(tmp_path, program(case, max_children=2, tls_handshake_timeout=0.5)) as service:
        service.wait_ready(2)
        closed(dial(service.address))
        half = dial(service.address)
        half.sendall(b"\x16\x03\x01\x02\x00\x01")
        closed(half)
        found = service.settled()
        assert (found["completed"], found["rejected"], found["failed"]) == (0, 2, 0)
        assert "Traceback" not in service.log


@pytest.mark.parametrize("verify", ["required", "optional"])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_certificates_of_clients(verify: str, version: ssl.TLSVersion, tmp_path: Path) -> None:
    make_certificate(tmp_path)
    settings = {"tls_client_ca": CERTIFICATE, "tls_verify_client": verify}
    with Service(tmp_path, program(max_children=1, **settings)) as service:
        service.wait_ready(1)
        for certified in (True, False):
            context = client_context(tmp_path, certified=certified)
            context.maximum_version = version
            if certified or verify == "optional":
                with secured(service, context) as client:
                    name = b"localhost" if certified else b"-"
                    assert client.ask(b"x").split()[2:] == [name, b"x"]
            else:
                ends = (ssl.SSLError, AssertionError, ConnectionResetError)
                with pytest.raises(ends), secured(service, context) as client:
                    client.ask(b"x")
        assert service.settled()["failed"] == 0


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_sessions_are_resumed_by_every_worker(version: ssl.TLSVersion, tmp_path: Path) -> None:
    """Each connection is served by another worker, of eight, and all but the first resume the session of the first."""
    make_certificate(tmp_path)
    with Service(tmp_path, program(max_children=8)) as service:
        service.wait_ready(8)
        context = client_context(tmp_path, certified=False)
        context.maximum_version = version
        session, held, pids = None, [], set()
        for number in range(8):
            client = secured(service, context, **({} if session is None else {"session": session}))
            held.append(client)
            pids.add(client.ask(b"pid").split()[-1])
            assert isinstance(client.sock, ssl.SSLSocket)
            assert client.sock.session_reused is (number > 0)
            session = session or client.sock.session
        for client in held:
            client.close()
        assert len(pids) == 8


def test_certificates_that_change(tmp_path: Path) -> None:
    """By a reload and by `ctl reload-tls`, under way without a failed connection; a bad pair changes nothing."""
    make_certificate(tmp_path)
    port = free_port()
    settings: dict[str, Any] = {
        "control_socket": str(tmp_path / "c"),
        "metrics_address": ("127.0.0.1", port),
        "max_children": 2,
    }
    with Released(tmp_path, source=program(**settings)) as service:
        service.wait_ready(2)
        expiry = 'prefork_tls_certificate_expiry_timestamp_seconds{listener="%s:%d"}' % service.address
        first = scraped(port, expiry)
        before = client_context(tmp_path, certified=False)
        make_certificate(tmp_path, days=9)
        with pytest.raises(ssl.SSLError):
            secured(service)  # it trusts the new one only
        done = ctl(tmp_path / "c", "reload-tls")
        assert (done.returncode, done.stdout) == (0, "2 workers replaced\n"), done
        answered(service)
        with pytest.raises(ssl.SSLError):
            secured(service, before)
        second = scraped(port, expiry)
        assert first is not None
        assert second is not None
        assert 6 * 86400 < second - first < 8 * 86400
        (tmp_path / KEY).write_text("no key")
        done = ctl(tmp_path / "c", "reload-tls")
        assert done.returncode == 1
        assert "the old certificate stays in service" in done.stderr
        service.expect("could not reload-tls, the old certificate stays in service: could not use tls_certificate")
        service.expect("reload failed")
        service.signal(signal.SIGHUP)
        service.wait_reloads(failed=1)
        answered(service)
        assert scraped(port, expiry) == second
        make_certificate(tmp_path, days=20)
        service.signal(signal.SIGHUP)
        service.wait_reloads(ok=1, failed=1)
        service.wait_ready(2, replaced=4)
        answered(service)
        third = scraped(port, expiry)
        assert third is not None
        assert third > second


def test_the_programs_own_context_and_a_drain(tmp_path: Path) -> None:
    """`create_ssl_context()` may extend ours; with eof a drain ends what idles, which is told."""
    make_certificate(tmp_path)
    more = "from tests.process.programs.tls_told import Extends as Hooks\nclass Hooks(Hooks, Told): pass\n"
    with Service(tmp_path, program(more=more, max_children=1, drain_connections="eof")) as service:
        service.wait_ready(1)
        context = client_context(tmp_path, certified=False)
        context.set_alpn_protocols(["extended"])
        with secured(service, context) as client:
            assert client.ask(b"x").split()[1] == b"extended"
            service.signal(signal.SIGTERM)
            client.wait_end()
        assert service.wait_exit() == 0


@pytest.mark.once
@pytest.mark.parametrize(
    ("how", "why"),
    [("none", "create_ssl_context() returned None"), ("raise", "the vault is away"), ("exit", "there is no")],
)
def test_a_context_that_cannot_be_had_any_more(how: str, why: str, tmp_path: Path) -> None:
    """All listeners go on with what they had, the one whose own is renewed already as well: none in the clear."""
    make_certificate(tmp_path)
    before = client_context(tmp_path, certified=False)
    files = f'tls_certificate = "{CERTIFICATE}"\ntls_key = "{KEY}"\n'
    first = f'[prefork]\ntarget = "prefork.examples:Upper"\nbind = "127.0.0.1:0"\ncontrol = "c"\n{files}'
    also = '[[prefork.also]]\ntarget = "tests.process.programs.tls_told:ByFile"\nbind = "127.0.0.1:0"\n'
    (tmp_path / "s.toml").write_text(f"{first}max_children = 1\n{also}")
    (tmp_path / "context").write_text("good")
    with running(["run", "--config", "s.toml"], cwd=tmp_path) as run:
        listeners = asked(tmp_path / "c", "status")["listeners"]
        make_certificate(tmp_path, days=9)
        (tmp_path / "context").write_text(how)
        done = ctl(tmp_path / "c", "reload-tls")
        assert done.returncode == 1
        assert f"could not reload-tls: {why}" in done.stderr
        run.allow("could not reload-tls, the old certificate stays in service")
        assert ctl(tmp_path / "c", "restart").returncode == 0
        for each in listeners:
            sock = dial(("127.0.0.1", int(each["address"].rpartition(":")[2])))
            with Connection(before.wrap_socket(sock, server_hostname="localhost")) as client:
                assert client.ask(b"x")


def test_an_override_that_returns_nothing(tmp_path: Path) -> None:
    """A certificate that is set is served with, or nothing is."""
    make_certificate(tmp_path)
    (tmp_path / "context").write_text("none")
    target = "tests.process.programs.tls_told:ByFile"
    said = refused(tmp_path, "--tls-certificate", CERTIFICATE, "--tls-key", KEY, target=target)
    assert said == "could not use tls_certificate: create_ssl_context() returned None, and no context"


def test_a_method_of_that_name_for_what_the_program_does_itself(tmp_path: Path) -> None:
    """It is no hook of ours: the connection is wrapped once."""
    make_certificate(tmp_path)
    definitions = "from tests.process.programs.tls_told import Ours as Handler, WrapsItself as Hooks\n"
    definitions += "class Hooks(Hooks, Told): pass\n"
    with Service(tmp_path, script(definitions, max_children=1)) as service:
        service.wait_ready(1)
        context = client_context(tmp_path, certified=False)
        context.set_alpn_protocols(["itself"])
        with secured(service, context) as client:
            assert client.ask(b"x").split()[1] == b"itself"


def test_behind_a_proxy(tmp_path: Path) -> None:
    """The header comes first, in the clear."""
    make_certificate(tmp_path)
    with Service(tmp_path, program(max_children=1, proxy_trusted="127.0.0.1")) as service:
        service.wait_ready(1)
        sock = dial(service.address)
        sock.sendall(b"PROXY TCP4 192.0.2.7 198.51.100.1 4242 443\r\n")
        context = client_context(tmp_path, certified=False)
        with Connection(context.wrap_socket(sock, server_hostname="localhost")) as client:
            assert client.ask(b"peer").split()[-1] == b"192.0.2.7"


def test_handle_request_is_over_tls(tmp_path: Path) -> None:
    """Also where nothing has called serve_forever()."""
    make_certificate(tmp_path)
    source = "from tests.process.programs.tls_told import one_request\none_request()\n"
    with Service(tmp_path, source, accounts=False) as service:
        with secured(service) as client:
            assert client.ask(b"hello").split()[-1] == b"hello"
        assert service.wait_exit() == 0


@pytest.mark.once
@pytest.mark.parametrize("tool", ["curl", "openssl"])
def test_real_clients(tool: str, tmp_path: Path) -> None:
    if not shutil.which(tool):
        pytest.skip(f"needs Debian's package {tool}")
    make_certificate(tmp_path)
    argv = ["-m", "prefork", "run", "prefork.examples:Http", "--bind", f"127.0.0.1:{(port := free_port())}"]
    argv += ["--tls-certificate", CERTIFICATE, "--tls-key", KEY]
    with Service(tmp_path, argv=argv, accounts=False) as service:
        asked = {
            "curl": ["curl", "-sS", "--retry", "50", "--retry-connrefused", "--retry-delay", "0", "--retry-max-time",
                     "20", "--cacert", CERTIFICATE, f"https://localhost:{port}/"],
            "openssl": ["openssl", "s_client", "-connect", f"localhost:{port}", "-CAfile", CERTIFICATE, "-brief",
                        "-verify_return_error"],
        }  # fmt: skip
        listening(port, service.process)
        done = subprocess.run(
            asked[tool], cwd=tmp_path, capture_output=True, text=True, timeout=HUNG, input="", check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout or "Verification: OK" in done.stderr


def refused(folder: Path, *options: str, target: str = "prefork.examples:Upper") -> str:
    argv = [sys.executable, "-m", "prefork", "run", target, "--bind", "127.0.0.1:0", *options]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(argv, cwd=folder, env=environ, capture_output=True, text=True, timeout=HUNG, check=False)
    assert done.returncode == 2, done.stderr
    line, *rest = done.stderr.splitlines()
    assert not rest
    return line.removeprefix("prefork: ")


def test_what_cannot_be_used_is_refused_by_a_sentence(tmp_path: Path) -> None:
    make_certificate(tmp_path)
    (tmp_path / "other").mkdir()
    make_certificate(tmp_path / "other")
    both = ("--tls-certificate", CERTIFICATE, "--tls-key")
    assert refused(tmp_path, "--tls-certificate", "none.pem") == (
        "could not read tls_certificate none.pem: no such file or directory"
    )
    assert refused(tmp_path, *both, "none.pem") == "could not read tls_key none.pem: no such file or directory"
    assert refused(tmp_path, *both, "other/key.pem").endswith("with tls_key other/key.pem: key values mismatch")
    assert refused(tmp_path, "--tls-key", KEY) == "could not set tls_key: there is no tls_certificate"
    assert refused(tmp_path, "--tls-client-ca", KEY) == "could not set tls_client_ca: there is no tls_certificate"
    assert refused(tmp_path, *both, KEY, "--tls-minimum-version", "1.1").endswith("it must be one of 1.2, 1.3")
    assert "tls_client_ca" in refused(tmp_path, *both, KEY, "--tls-client-ca", KEY)
    (tmp_path / "junk.pem").write_text("junk")
    (tmp_path / "junk.pem").chmod(0o600)
    assert refused(tmp_path, *both, "junk.pem").endswith("it is not PEM, or something is missing there")
    encrypt = ["openssl", "ec", "-in", KEY, "-out", "locked.pem", "-aes128", "-passout", "pass:x"]
    subprocess.run(encrypt, cwd=tmp_path, check=True, capture_output=True, timeout=HUNG)
    os.chmod(tmp_path / "locked.pem", 0o600)
    assert refused(tmp_path, *both, "locked.pem") == (
        "could not use tls_key locked.pem: it is encrypted, and nobody is there to be asked"
    )
    for names, why in [(" , ", "it names no protocol"), ("h2, é", "each name has 1 to 255 bytes of ASCII"),
                       ("x" * 256, "each name has 1 to 255 bytes of ASCII")]:  # fmt: skip
        said = refused(tmp_path, *both, KEY, "--tls-alpn", names)
        assert said == f"could not set tls_alpn to {names!r:.80}: {why}"
    os.chmod(tmp_path / KEY, 0o644)
    assert refused(tmp_path, *both, KEY) == "could not use tls_key key.pem: its mode 0644 lets others read or change it"
    os.chmod(tmp_path / CERTIFICATE, 0o644)  # where no tls_key is set, the sentence names none
    assert refused(tmp_path, *both[:2]) == (
        f"could not use the key in tls_certificate {CERTIFICATE}: its mode 0644 lets others read or change it"
    )
    os.chmod(tmp_path / CERTIFICATE, 0o600)
    assert refused(tmp_path, *both[:2]) == (
        f"could not use tls_certificate {CERTIFICATE} with the key in it: it is not PEM, or something is missing there"
    )
