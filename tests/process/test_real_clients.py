"""Other people's HTTP clients keep their connections: over reloads none of them connects again, and none fails."""

import contextlib
import http.client
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.clients.connections import free_port
from tests.support.hosts.namespaces import haproxy, listener
from tests.support.programs.recipes import Asking, Recipe, recipe
from tests.support.programs.service import HUNG
from tests.support.tools.figures import figure

pytestmark = pytest.mark.once  # the clients are the same, and some of them are programs
PROGRAMS = Path(__file__).parent / "programs"
HAPROXY = """
defaults
    mode http
    retries 0
    timeout connect 5s
    timeout client 30s
    timeout server 30s
frontend site
    bind 127.0.0.1:{port}
    default_backend pages
backend pages
    http-reuse always
    server site 127.0.0.1:{behind}
"""
NGINX = """
daemon off;
master_process off;
pid nginx.pid;
events {{}}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    upstream pages {{
        server 127.0.0.1:{behind};
        keepalive 16;
    }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://pages;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_next_upstream off;
        }}
    }}
}}
"""


def needs(tool: str, package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        shutil.which(tool) is None, reason=f"{tool} is not installed (Debian's package {package})"
    )


@pytest.fixture
def site() -> Iterator[Recipe]:
    """A site at two workers: kept_site.py."""
    with recipe("kept_site:Site", "127.0.0.1:0", cwd=PROGRAMS) as run:
        yield run


def test_requests(site: Recipe) -> None:
    """A session of requests has one connection, over three reloads."""
    import requests  # every other Python reads this file, and has neither of the two

    with requests.Session() as session:
        sent = 0

        def ask() -> None:
            nonlocal sent
            sent += 1
            answer = session.post(f"http://127.0.0.1:{site.port}/", data=b"%d" % sent * 1000, timeout=HUNG)
            assert answer.content == b"%d" % sent * 1000

        ask()
        with Asking(ask) as asking:
            for _ in range(3):
                site.reload()
        assert asking.failed == []
        adapter = session.get_adapter("http://127.0.0.1")
        assert isinstance(adapter, requests.adapters.HTTPAdapter)
        made = [pool.num_connections for pool in map(adapter.poolmanager.pools.get, adapter.poolmanager.pools.keys())]
        figure("requests over three reloads, on one connection", asking.answered)
        assert made == [1]


def test_urllib3(site: Recipe) -> None:
    """A pool of urllib3 that threads share has twenty connections at two workers, and no more over three reloads,
    whether they are busy or idle."""
    import urllib3

    def ask() -> None:
        answer = pool.request("GET", "/page", retries=False, timeout=HUNG)
        assert answer.status == 200
        assert answer.data.endswith(b" /page\n")

    def use_all() -> None:
        for answer in [pool.request("GET", "/page", retries=False, preload_content=False) for _ in range(20)]:
            assert answer.read().endswith(b" /page\n")
            answer.release_conn()

    with urllib3.HTTPConnectionPool("127.0.0.1", site.port, maxsize=20, block=True) as pool:
        use_all()
        assert pool.num_connections == 20
        with contextlib.ExitStack() as stack:
            everybody = [stack.enter_context(Asking(ask, pause=0.01)) for _ in range(20)]
            for _ in range(2):
                site.reload()
        assert [client.failed for client in everybody] == [[]] * 20
        site.reload()
        use_all()
        assert pool.num_connections == 20
        figure("requests over three reloads, on twenty connections", sum(client.answered for client in everybody))


@needs("curl", "curl")
def test_curl(site: Recipe) -> None:
    """curl has one connection for all of its URLs, asked at once or with pauses."""
    for options in ([], ["--rate", "4/s"]):
        urls = [f"http://127.0.0.1:{site.port}/{number}" for number in range(4)]
        told = subprocess.run(
            ["curl", "-sS", "-w", "%{num_connects} connects\n", *options, *urls],
            check=True, capture_output=True, text=True, timeout=HUNG,
        ).stdout  # fmt: skip
        assert re.findall(r"^\d+ /(\d)$", told, re.MULTILINE) == ["0", "1", "2", "3"]
        assert re.findall(r"^(\d) connects$", told, re.MULTILINE) == ["1", "0", "0", "0"]


@needs("curl", "curl")
def test_curl_over_a_reload(site: Recipe) -> None:
    """The connection of a curl that asks four times a second is the same in the next generation."""
    argv = ["stdbuf", "-oL", "curl", "-sS", "--rate", "4/s", "-w", "%{num_connects} connects\n"]
    curl = subprocess.Popen(
        [*argv, *[f"http://127.0.0.1:{site.port}/"] * 4 * round(HUNG)], stdout=subprocess.PIPE, text=True
    )  # fmt: skip
    try:
        assert curl.stdout is not None
        assert curl.stdout.readline().endswith(" /\n")
        assert curl.stdout.readline() == "1 connects\n"
        site.reload()
        new = {f"{pid} /\n" for pid in re.findall(r"gen=2 pid=(\d+): ready", site.log)}
        said: list[str] = []
        while not said or said[-2] not in new:
            said += [curl.stdout.readline(), curl.stdout.readline()]
            assert said[-1] == "0 connects\n", said
    finally:
        curl.kill()
        curl.communicate()


@needs("wrk", "wrk")
def test_wrk(site: Recipe) -> None:
    """wrk with 40 connections at two workers, over a reload: no error of a socket, no answer but 200."""
    wrk = subprocess.Popen(
        ["stdbuf", "-oL", "wrk", "-t", "2", "-c", "40", "-d", "4", "--latency", f"http://127.0.0.1:{site.port}/"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert wrk.stdout is not None
    first = wrk.stdout.readline()
    assert first.startswith("Running")
    site.reload()
    told = wrk.communicate(timeout=HUNG)[0]
    assert wrk.returncode == 0
    assert "Socket errors" not in told, told
    assert "Non-2xx" not in told, told
    rate = re.search(r"^Requests/sec: +([\d.]+)", told, re.MULTILINE)
    assert rate is not None, told
    figure("wrk, requests a second over a reload", rate[1])
    assert float(rate[1]) > 0


@needs("ab", "apache2-utils")
def test_ab(site: Recipe) -> None:
    """ab -k, a client of HTTP/1.0 that asks for keep-alive: each of its requests is on a connection that is kept."""
    argv = ["ab", "-k", "-q", "-l", "-c", "20", "-n", "4000", f"http://127.0.0.1:{site.port}/"]
    told = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=HUNG).stdout
    found = dict(re.findall(r"^([\w -]+): +(\d[\d.]*)", told, re.MULTILINE))
    figure("ab -k, requests a second", found["Requests per second"])
    assert (found["Complete requests"], found["Failed requests"]) == ("4000", "0")
    assert found["Keep-Alive requests"] == "4000"


@contextlib.contextmanager
def nginx(config: str, folder: Path, port: int) -> Iterator[None]:
    (folder / "nginx.conf").write_text(config)
    argv = ["nginx", "-p", str(folder), "-c", "nginx.conf", "-e", "nginx.log"]
    with listener(argv, folder / "nginx.out", port):
        yield


@pytest.mark.parametrize(
    ("balancer", "config"),
    [
        pytest.param(haproxy, HAPROXY, id="haproxy", marks=needs("haproxy", "haproxy")),
        pytest.param(nginx, NGINX, id="nginx", marks=needs("nginx", "nginx")),
    ],
)
def test_a_balancer_that_keeps_connections(
    balancer: Callable[[str, Path, int], "contextlib.AbstractContextManager[None]"],
    config: str,
    site: Recipe,
    tmp_path: Path,
) -> None:
    """A balancer that sends the requests of many clients over few connections, and tries none again: each of them is
    answered, over three reloads."""
    port = free_port()

    def ask() -> None:
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=HUNG)
        client.request("GET", "/page")
        answer = client.getresponse()
        assert (answer.status, answer.read()[-6:]) == (200, b"/page\n")
        client.close()

    with balancer(config.format(port=port, behind=site.port), tmp_path, port), contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Asking(ask, pause=0.01)) for _ in range(4)]
        for _ in range(3):
            site.reload()
    assert [client.failed for client in clients] == [[]] * 4
    figure("requests over three reloads", sum(client.answered for client in clients))
