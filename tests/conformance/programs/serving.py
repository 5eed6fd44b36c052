"""A program served from a pool as its user would serve it, asked by a real client under kill, reload and drain.

Runs in the process that tests; the pool and its client (programs/client.py) run in the environment of the programs.
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

from tests.support.clients.controlling import answer, connected
from tests.support.clients.holding import Holding
from tests.support.programs.recipes import Asking, Recipe, recipe

from .catalogue import Program
from .client import HUNG, Client
from .installed import ROOT, environment

SERVED = f"{__package__}.served"
CONTROL = "control.sock"
PAUSE = 0.02  # seconds between two questions of one client, which would take a core otherwise
Address = tuple[str, int]


def run_served(program: Program, folder: Path) -> int:
    """Serve the program through all that a service goes through; return how many questions were answered meanwhile.

    Raises NotInstalled, and AssertionError for what is not as it should be.
    """
    with _started(program, folder) as run, _client(program, folder) as client:
        address = run.address.rpartition(":")[0].removeprefix("udp://"), int(run.address.rpartition(":")[2])
        client.ask(address)
        if program.datagrams or program.elsewhere:
            answered = _asked_all_the_while(run, folder, partial(client.ask, address))
        else:
            with _client(program, folder) as other:
                _killed(run, folder, client, address)
                answered = _reloaded(run, folder, client, partial(other.ask, address), address)
            _accounted(folder)
            _drained(run, folder, client, address)
    return answered


@contextlib.contextmanager
def _started(program: Program, folder: Path) -> Iterator[Recipe]:
    python = str(environment())
    bind = f"{'udp://' if program.datagrams else ''}127.0.0.1:0"
    control = f"unix:{folder / CONTROL}"
    with recipe(
        f"{SERVED}.{program.served}", bind, "--control", control, command=[python, "-m", "prefork"], cwd=folder
    ) as run:
        yield run


def _client(program: Program, folder: Path) -> Client:
    module = f"{SERVED}.{program.served.partition(':')[0]}"
    return Client([str(environment())], module, folder, {**os.environ, "PYTHONPATH": str(ROOT)})


def _asked_all_the_while(run: Recipe, folder: Path, ask: Any) -> int:
    """Every question is answered after workers were killed one after the other, and over a reload."""
    for worker in _asked(folder, "workers")["workers"]:
        if worker["state"] == "idle":
            with contextlib.suppress(ProcessLookupError):  # one that leaves after its request, which it has served
                run.kill(worker["pid"])
    ask()
    with Asking(ask, PAUSE) as asking:
        run.reload()
    assert not asking.failed, (asking.answered, asking.failed)
    return asking.answered


def _killed(run: Recipe, folder: Path, client: Client, address: Address) -> None:
    """Who is served by another than the killed worker notices nothing; who was served by it, the next one serves."""
    for of_the_client in (False, True):
        with Holding(address) as held:
            busy, idle = _held(folder, held, client)
            run.kill(busy if of_the_client else idle)
            held.let_go()
            wrong = client.answer()
        assert of_the_client or wrong is None, wrong
        client.ask(address)


def _reloaded(run: Recipe, folder: Path, client: Client, ask: Any, address: Address) -> int:
    """Who is served by the old generation is served to the end, and nobody else's question fails."""
    with Holding(address) as held:
        _held(folder, held, client)
        with Asking(ask, PAUSE) as asking:
            run.process.send_signal(signal.SIGHUP)
            run.read_until(r"gen=2 pid=\d+: ready$", run.workers)
        held.let_go()
        assert (wrong := client.answer()) is None, wrong
        run.read_until(r"generation 2 is in service", 1)
    assert not asking.failed, (asking.answered, asking.failed)
    return asking.answered


def _accounted(folder: Path) -> None:
    """Only a request whose worker was killed is lost; each other one is counted once, as one that went well."""
    deadline = monotonic() + HUNG
    while True:
        requests = _settled(folder)["requests"]
        if requests["accepted"] == requests["ok"] + requests["lost"]:  # else a worker is at the end of one
            break
        assert monotonic() < deadline, requests
    assert requests["lost"] <= 1, requests


def _drained(run: Recipe, folder: Path, client: Client, address: Address) -> None:
    """Who is being served when the service is told to end is served to the end."""
    with Holding(address) as held:
        _held(folder, held, client)
        run.process.send_signal(signal.SIGTERM)
        run.read_until(r"draining", 1)
        held.let_go()
        assert (wrong := client.answer()) is None, wrong
    status = run.ended()
    assert status == 0, f"the service ended with {status}"


def _held(folder: Path, held: Holding, client: Client) -> tuple[int, int]:
    """Have the client ask, until a worker has the question in hand; the pids of that worker and of an idle one."""
    _settled(folder)  # a client has its answer before the worker has counted it
    client.begin(held.address)
    held.wait_asked()
    deadline = monotonic() + HUNG
    while monotonic() < deadline:
        workers = _asked(folder, "workers")["workers"]
        busy = [each["pid"] for each in workers if each["lanes_busy"]]
        idle = [each["pid"] for each in workers if not each["lanes_busy"]]
        if len(busy) == 1 and idle:
            return busy[0], idle[0]
    raise AssertionError(f"hung: no worker takes the question: {workers}")


def _settled(folder: Path) -> Any:
    """The status once no request runs."""
    deadline = monotonic() + HUNG
    while (found := _asked(folder, "status"))["lanes_busy"]:
        assert monotonic() < deadline, f"hung: a request does not end: {found}"
    return found


def _asked(folder: Path, verb: str) -> Any:
    with connected(folder / CONTROL) as (sock, answers):
        sock.sendall(b'{"verb": "%s"}\n' % verb.encode())
        return answer(answers)["result"]
