"""The recipes of deploy/recipes, asked by the programs that they are for, under reload and `kill -9` of workers."""

import contextlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import smtplib
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic

import pytest

from tests.support.clients.connections import connect, free_port
from tests.support.hosts.namespaces import haproxy
from tests.support.hosts.postfix import postfix
from tests.support.programs.command import MODULE
from tests.support.programs.recipes import RECIPES, Asking, Recipe, recipe
from tests.support.programs.service import HUNG
from tests.support.tools.figures import figure

BEHIND = """
defaults
    mode tcp
    timeout connect 5s
    timeout client 30s
    timeout server 30s
frontend mail
    bind 127.0.0.1:{port}
    default_backend intake
backend intake
    {line}
"""


def needs(tool: str, package: str) -> pytest.MarkDecorator:
    found = shutil.which(tool) or shutil.which(tool, path="/usr/sbin")
    return pytest.mark.skipif(found is None, reason=f"{tool} is not installed (Debian's package {package})")


def output(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=HUNG).stdout


def keep_running(run: Recipe, ask: Callable[[], object]) -> None:
    """What every recipe must stand: asked all the while, a reload fails nothing; after `kill -9` of all it answers."""
    ask()
    with Asking(ask) as asking:
        run.reload()
    assert asking.failed == []
    with Asking(ask) as killed:
        run.kill_each_worker()
    ask()
    figure("answers over a reload; failed over the kills", f"{asking.answered}; {len(killed.failed)}")


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.py")), ids=lambda path: path.stem)
def test_a_page_that_says_how_to_try_it(path: Path) -> None:
    """Each recipe is about a page, and what it tells one to run is there."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.__doc__ is not None
    targets = re.findall(r"^    prefork run (\w+):(\w+) --bind \S+", module.__doc__, re.MULTILINE)
    assert targets
    assert [target for target in targets if target[0] != path.stem or not hasattr(module, target[1])] == []
    assert len(path.read_text().splitlines()) <= 140


# DNS, by dig.


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Recipe]:
    """The responder over both transports, by the file of the recipe at another port."""
    port, text = free_port(), (RECIPES / "dns_responder.toml").read_text()
    assert ":5353" in text
    (tmp_path / "dns.toml").write_text(text.replace(":5353", f":{port}"))
    with recipe("dns_responder:OverUdp", f"udp://127.0.0.1:{port}", "--config", str(tmp_path / "dns.toml")) as run:
        yield run


@needs("dig", "bind9-dnsutils")
@pytest.mark.parametrize("more", ["+notcp", "+tcp"])
def test_dns(more: str, both: Recipe) -> None:
    """dig gets its records over UDP and TCP, of one pool."""

    def dig(*question: str) -> str:
        return output("dig", "@127.0.0.1", "-p", str(both.port), more, "+tries=1", "+time=5", *question)

    def ask() -> None:
        assert dig("www.example.test", "+short") == "192.0.2.10\n"

    assert "2001:db8::10" in dig("www.example.test", "AAAA")
    assert "status: NXDOMAIN" in dig("nothing.example.test")
    assert "status: REFUSED" in dig("www.elsewhere.test")
    keep_running(both, ask)


@needs("dig", "bind9-dnsutils")
def test_dns_truncation(both: Recipe) -> None:
    """What does not fit into a datagram is cut, with the question kept; then dig asks over TCP, and all of it comes."""
    dig = ["dig", "@127.0.0.1", "-p", str(both.port), "big.example.test", "TXT"]
    cut = output(*dig, "+noedns", "+ignore")
    assert " tc " in cut.partition("flags:")[2].partition("\n")[0]
    assert "QUERY: 1, ANSWER: 0" in cut
    assert "ANSWER: 10" in output(*dig, "+bufsize=4096", "+ignore")
    again = output(*dig, "+noedns")
    assert "Truncated, retrying in TCP mode" in again
    assert "ANSWER: 10" in again


# Redis, by redis-benchmark and by clients that count.


@needs("redis-benchmark", "redis-tools")
def test_redis_benchmark(tmp_path: Path) -> None:
    """redis-benchmark finds a server that it can measure, and the store is one for all workers."""
    with recipe("redis_service:Redis", "127.0.0.1:0", REDIS_SERVICE_FILE=str(tmp_path / "db")) as run:
        args = ["-h", "127.0.0.1", "-p", str(run.port)]
        measured = output("redis-benchmark", *args, "-t", "ping,set,get,incr", "-c", "8", "-n", "2000", "--csv")
        rows = {row.split('","')[0].strip('"'): row.split('","')[1] for row in measured.splitlines()[1:]}
        figure("redis-benchmark, requests a second", rows)
        assert {"PING_INLINE", "PING_MBULK", "SET", "GET", "INCR"} <= set(rows)
        counted = int(output("redis-cli", *args, "get", "counter:__rand_int__"))
        assert counted == 2000
        assert output("redis-cli", *args, "flushall").startswith("ERR unknown command")
        assert output("redis-cli", *args, "set", "word", "abc") == "OK\n"
        assert output("redis-cli", *args, "incr", "word").startswith("ERR value is not an integer")
        assert output("redis-cli", *args, "get", "word") == "abc\n"


def test_redis_counts_exactly(tmp_path: Path) -> None:
    """INCR from clients that connect again, over a reload and kills: what was answered is stored, and no more than
    was asked."""
    with recipe("redis_service:Redis", "127.0.0.1:0", REDIS_SERVICE_FILE=str(tmp_path / "db")) as run:
        address = ("127.0.0.1", run.port)

        def incr() -> None:
            with connect(address) as client:
                for _ in range(20):
                    assert client.ask(b"incr n\r").startswith(b":")
                    counted.append(1)

        counted: list[int] = []
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(Asking(incr)) for _ in range(3)]
            run.reload()
            run.kill_each_worker()
        with connect(address) as client:
            client.ask(b"get n\r")
            stored = int(client.answer())
        unanswered = sum(len(client.failed) for client in clients)
    figure("INCR answered, stored, without an answer", f"{len(counted)}, {stored}, {unanswered}")
    assert len(counted) <= stored <= len(counted) + unanswered


# A policy service, by the protocol and by Postfix.


def test_policy_protocol() -> None:
    """Questions on one connection get an answer each."""
    with recipe("policy_service:Policy", "127.0.0.1:0") as run:

        def ask(sender: str = "a@b.test") -> str:
            with connect(("127.0.0.1", run.port)) as client:
                answers = []
                for state in ("MAIL", "RCPT"):
                    question = f"request=smtpd_access_policy\nprotocol_state={state}\nsender={sender}\n"
                    answers.append(client.ask(question.encode()).decode())
                    assert client.answer() == b""
            assert all(answer.startswith("action=") for answer in answers), answers
            return "; ".join(answers)

        assert ask() == "action=DUNNO; action=PREPEND X-Policy: seen"
        assert ask("x@blocked.example") == "; ".join(["action=REJECT no mail from blocked.example"] * 2)
        keep_running(run, ask)


@pytest.mark.skipif(os.geteuid() != 0, reason="Postfix is started by root")
@needs("postfix", "postfix")
def test_policy_of_a_real_postfix() -> None:
    """Postfix takes and refuses recipients as the service says, and no mail waits over a reload or the kills."""
    with (
        recipe("policy_service:Policy", "127.0.0.1:0") as run,
        postfix(f"check_policy_service inet:127.0.0.1:{run.port}") as port,
    ):

        def rcpt(sender: str) -> tuple[int, bytes]:
            with smtplib.SMTP("127.0.0.1", port, local_hostname="client.test", timeout=HUNG) as client:
                client.mail(sender)
                return client.rcpt("me@here.test")

        def send() -> None:
            with smtplib.SMTP("127.0.0.1", port, local_hostname="client.test", timeout=HUNG) as client:
                assert client.sendmail("a@b.test", "me@here.test", "Subject: x\r\n\r\nx\r\n") == {}

        code, text = rcpt("x@blocked.example")
        assert (code, b"no mail from blocked.example" in text) == (554, True)
        send()
        with Asking(send) as sending:
            run.reload()
            run.kill_each_worker()
        assert sending.failed == []
        assert rcpt("x@blocked.example")[0] == 554
    figure("mails taken over a reload and kills", sending.answered)


# A mail intake, by smtplib behind HAProxy.


@needs("haproxy", "haproxy")
def test_mail_behind_haproxy(tmp_path: Path) -> None:
    """The server speaks first, through a proxy that sends its header; each mail that was taken lies there, whole, with
    its client's address, over a reload and kills."""
    mails = tmp_path / "mails"
    with recipe(
        "mail_intake:Intake", "127.0.0.1:0", "--proxy-trusted", "127.0.0.1", MAIL_INTAKE=str(mails)
    ) as run:  # fmt: skip
        page = (RECIPES / "mail_intake.py").read_text()
        line = re.search(r"server intake1 \S+ send-proxy-v2", page)
        assert line is not None
        port, taken = free_port(), list[str]()
        config = BEHIND.format(port=port, line=line[0].replace("127.0.0.1:2525", f"127.0.0.1:{run.port}"))
        with haproxy(config, tmp_path, port):

            def send() -> None:
                source = ("127.0.0.9", 0)
                with smtplib.SMTP("127.0.0.1", port, "client.test", timeout=HUNG, source_address=source) as client:
                    assert client.mail("a@b.test")[0] == client.rcpt("in@here.test")[0] == 250
                    code, answer = client.data("Subject: x\r\n\r\n.a dot, and an end\r\n")
                    assert code == 250
                    taken.append(answer.decode().split()[-1])

            keep_running(run, send)
            with smtplib.SMTP("127.0.0.1", port, "client.test", timeout=HUNG) as client:
                assert client.docmd("DATA")[0] == 503
                assert client.docmd("MAIL", "FROM:nobody")[0] == 501
                assert client.docmd("TURN")[0] == 500
                client.ehlo_or_helo_if_needed()
                assert "size" in client.esmtp_features
    head = "Return-Path: <a@b.test>\r\nReceived: from [127.0.0.9]\r\nDelivered-To: in@here.test\r\n"
    mail = f"{head}Subject: x\r\n\r\n.a dot, and an end\r\n"
    assert {(mails / name).read_bytes() for name in taken} == {mail.encode()}
    left = sum(not path.name.startswith(".") for path in mails.iterdir()) - len(taken)
    figure("mails taken, and there without an answer that was heard", f"{len(taken)}; {left}")


# HTTPS, by curl.


@needs("curl", "curl")
@needs("openssl", "openssl")
def test_https(tmp_path: Path) -> None:
    """curl sees the certificate of the page, and is known by its own; a new one is in service after `reload-tls`."""
    page = (RECIPES / "https_site.py").read_text()
    made = re.search(r"openssl req (?:\\\n|.)+", page)
    assert made is not None
    argv = shlex.split(made[0].replace("\\\n", " "))
    subprocess.run(argv, cwd=tmp_path, check=True, capture_output=True, timeout=HUNG)
    (tmp_path / "key.pem").chmod(0o600)
    certificate, key, control = (str(tmp_path / name) for name in ("cert.pem", "key.pem", "c"))
    options = ["--tls-certificate", certificate, "--tls-key", key, "--tls-client-ca", certificate,
               "--tls-verify-client", "optional", "--tls-alpn", "http/1.1", "--control", control]  # fmt: skip
    with recipe("https_site:Site", "127.0.0.1:0", *options) as run:

        def curl(*more: str) -> str:
            return output("curl", "-sS", "--cacert", certificate, *more, f"https://localhost:{run.port}/")

        def ask() -> None:
            assert curl() == "hello, stranger, over TLSv1.3\n"

        assert curl("--cert", certificate, "--key", key) == "hello, localhost, over TLSv1.3\n"
        assert "ALPN: server accepted http/1.1" in output(
            "curl", "-sv", "--stderr", "-", "--cacert", certificate, f"https://localhost:{run.port}/"
        )
        keep_running(run, ask)
        with Asking(ask) as asking:
            output(*MODULE, "ctl", "reload-tls", "--control", control)
        assert asking.failed == []


# Syslog, by logger.


@needs("logger", "bsdutils")
@pytest.mark.parametrize(("target", "scheme", "more"), [("OverUdp", "udp://", "-d"), ("OverTcp", "", "-T")])
def test_syslog(target: str, scheme: str, more: str, tmp_path: Path) -> None:
    """Every message of logger is a line; none is lost over a reload, over UDP too, and none is torn by a kill."""
    file = tmp_path / "syslog.jsonl"
    with recipe(f"syslog_collector:{target}", f"{scheme}127.0.0.1:0", SYSLOG_FILE=str(file)) as run:
        to = ["logger", "-n", "127.0.0.1", "-P", str(run.port), more, "-p", "local0.warning", "-t", "demo"]
        sent: list[str] = []

        def log() -> None:
            output(*to, f"message {len(sent)}")
            sent.append(f"message {len(sent)}")

        output(*to, "--rfc3164", "of old")
        if more == "-T":
            output(*to, "--octet-count", "on two\nlines")
        with Asking(log) as logging:
            run.reload()
        assert logging.failed == []
        before_kills = len(sent)
        deadline = monotonic() + HUNG
        while not {f'"{text}"' for text in sent} <= set(re.findall(r'"message \d+"', file.read_text())):
            assert monotonic() < deadline, "hung: a message is not written"  # logger ends before it is
        with Asking(log):
            run.kill_each_worker()
        log()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    texts = {line["text"] for line in lines}
    figure("messages over a reload", f"{before_kills} sent, {len(texts & set(sent[:before_kills]))} kept")
    assert {(line["facility"], line["severity"], line["app"]) for line in lines} == {(16, "warning", "demo")}
    assert set(sent[:before_kills]) <= texts
    assert sent[-1] in texts
    assert "of old" in texts
    assert more != "-T" or "on two\nlines" in texts


# WSGI, by HTTP.


def test_wsgi() -> None:
    """The application answers from workers of the pool."""
    with recipe("wsgi_site:Site", "127.0.0.1:0", "--request-timeout", "30s") as run:

        def get() -> str:
            with urllib.request.urlopen(f"http://127.0.0.1:{run.port}/hello", timeout=HUNG) as answer:
                assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
                page: str = answer.read().decode()
            assert page.startswith("GET /hello answered by process ")
            return page

        assert int(get().split()[-1]) != run.pid
        keep_running(run, get)


@pytest.fixture(autouse=True)
def no_byte_code(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The folder of the recipes stays as it is."""
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    yield
    assert threading.active_count() == 1
