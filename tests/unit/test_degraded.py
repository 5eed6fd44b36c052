"""The degraded master: what it takes over, in which order it begins and ends, and what it hands on."""

import signal
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from prefork.commands import BY_SIGNAL, Command
from prefork.master.mailbox import Mailbox
from prefork.reload import degraded, on_change
from prefork.reload.degraded import limits, serve_degraded
from prefork.reload.handover import Record
from prefork.workers.signals import Signals
from prefork.workers.wakeup import Wakeup

MASK = {int(signal.SIGHUP)}


class Noted:
    """Anything, whose calls are noted in one list with those of all others."""

    def __init__(self, name: str, done: list[str], **attributes: Any) -> None:
        self._name, self._done = name, done
        vars(self).update(attributes)

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *arguments: self._done.append(f"{self._name}.{name}")


@pytest.fixture
def done() -> list[str]:
    return []


# Its limits.


def child(kind: str, state: str) -> dict[str, str]:
    return {"kind": kind, "state": state}


@pytest.mark.parametrize(("children", "serving"), [
    ([], 1),
    ([child("WORKER", "READY")] * 3, 3),
    ([child("WORKER", "READY"), child("WORKER", "STARTING"), child("WORKER", "DRAINING")], 2),
    ([child("WORKER", "KILLING"), child("EXPORTER", "READY")], 1),
    ([child("WORKER", "READY"), child("EXPORTER", "READY"), child("EXPORTER", "STARTING")], 1),
])  # fmt: skip
def test_as_many_as_there_are(children: list[dict[str, str]], serving: int) -> None:
    """A pool of those that serve, and that starts none; with the times that the program had set."""
    found = limits({"children": children, "boot_timeout": 7.0, "graceful_timeout": 8.0})
    assert (found.min_children, found.max_children, found.pool) == (serving, serving, True)
    assert (found.boot_timeout, found.graceful_timeout) == (7.0, 8.0)
    assert found.request_timeout is None


# What it hands on.


@pytest.mark.parametrize("names", [(), ("listener",), ("listener", "metrics")])
def test_what_it_was_handed_is_handed_on(names: tuple[str, ...]) -> None:
    """Unchanged, with the descriptors: the next image begins where this one did. Of its own it has no memory."""
    listeners = {name: {"fd": number, "asked": name} for number, name in enumerate(names, 7)}
    values = {**listeners, "fixed": {"lanes": 3}, "control_path": "c", "directory": "/d", "other": 1}
    values |= {"holder": [75.0, None, 10.0, 30.0]} if names else {}
    record = Record({})
    degraded._packer(values)(record)
    held = {"holder": values["holder"]} if names else {}
    known = {"own": [], "fixed": {"lanes": 3}, "control_path": "c", "directory": "/d"}
    assert record.values == {**listeners, **known, **held}
    assert record.fds == [7, 8][: len(names)]


# Its life.


@pytest.fixture
def wakeup() -> Iterator[Wakeup]:
    wakeup = Wakeup()
    yield wakeup
    wakeup.close()


@pytest.mark.parametrize("fails", [False, True])
def test_it_begins_and_ends_in_this_order(fails: bool, done: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Signals come when it can obey them; its paths are removed while they are still its own. A title is no matter."""

    def title(text: str) -> None:
        done.append(text)
        if fails:
            raise OSError

    def close(signals: Signals) -> None:
        done.append("signals.close")
        signals._wakeup.close()

    supervisor, listener = Noted("supervisor", done), Noted("listener", done)
    monkeypatch.setattr(degraded, "_start", lambda *given: (supervisor, {"listener": listener, "metrics": None}))
    monkeypatch.setattr(degraded, "setproctitle", title)
    monkeypatch.setattr(degraded, "set_mask", lambda mask: done.append(f"mask {mask}"))
    monkeypatch.setattr(Signals, "close", close)
    handed = Noted("handed", done, values={"name": "app", "mask": MASK})
    assert serve_degraded(handed, "why") == 0  # type: ignore[arg-type]
    assert done == [
        "handed.take_back", "prefork: master app degraded", f"mask {MASK}", "supervisor.run", "supervisor.close",
        "signals.close", "listener.unlink", "listener.close",
    ]  # fmt: skip


class Start:
    """What `_start()` is given, and what it makes of it."""

    def __init__(self, done: list[str], wakeup: Wakeup, values: dict[str, Any]) -> None:
        self.done = done
        self.asked: list[str] = []
        self.early = Noted("early", done)
        roles = [name for name in values if name != "control"]
        self.handed: Any = Noted("handed", done, values=values, roles=roles, resume=self._resume, early=self.early)
        self.wakeup = wakeup
        self.signals: Any = Noted("signals", done, note="note", take=self._take)
        self.taken: dict[int, Any] = {}
        self.control: list[Any] = []

    def _resume(self, name: str) -> str:
        self.asked.append(name)
        return f"the {name}"

    def _take(self, handlers: dict[int, Any]) -> None:
        self.done.append("signals.take")
        self.taken = handlers

    def __call__(self) -> tuple[Any, Any]:
        return degraded._start(self.handed, "why", self.wakeup, Mailbox(lambda: None), self.signals)


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What stands on other modules is named only."""
    found = SimpleNamespace(control=[])
    monkeypatch.setattr(degraded, "Generations", lambda **given: given)
    monkeypatch.setattr(degraded, "_supervisor", lambda *given: "the supervisor")
    monkeypatch.setattr(degraded, "resumed_terms", lambda packed: f"terms {packed}")
    monkeypatch.setattr(degraded, "resumed_listener", lambda packed: f"listener {packed}")
    monkeypatch.setattr(degraded, "open_control", lambda *given: found.control.append((given[0], *given[2:])))
    return found


def test_it_takes_over_what_there_is(done: list[str], wakeup: Wakeup, parts: SimpleNamespace) -> None:
    """The sockets by the addresses that were asked for, the control socket, and the signals that came meanwhile before
    those that come now."""
    start = Start(done, wakeup, {"listener": {"asked": "a"}, "metrics": {"asked": "m"}, "control": "c"})
    assert start() == ("the supervisor", {"listener": "the listener", "metrics": "the metrics"})
    assert start.asked == ["listener", "metrics"]
    assert parts.control == [("the supervisor", "terms c", "listener c", "c")]
    assert done == ["handed.take_back", "early.hand_over", "signals.take", "signals.outlive_readers"]
    assert start.handed.early is None
    assert start.taken == dict.fromkeys(BY_SIGNAL, "note")


def test_it_can_be_begun_again(done: list[str], wakeup: Wakeup, parts: SimpleNamespace) -> None:
    """What was handed over once is not handed over again; there need be neither control socket nor metrics."""
    start = Start(done, wakeup, {"listener": {"asked": "a"}})
    start()
    assert start() == ("the supervisor", {"listener": "the listener"})
    taken = ["signals.take", "signals.outlive_readers"]
    assert done == ["handed.take_back", "early.hand_over", *taken, "handed.take_back", *taken]
    assert parts.control == []


# Its supervisor.


class Supervising:
    """Its supervisor, and what that is given."""

    def __init__(self, done: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.signals = Noted("signals", done)
        self.commands: list[Command] = []
        self.exporters: list[Any] = []
        self.service: Any = None
        self.limits: Any = None
        tasks = SimpleNamespace(changes=None, export=self.exporters.append)
        self.supervisor: Any = Noted(
            "supervisor", done, tasks=tasks, fork="fork", forget_memory="forget_memory",
            companions=SimpleNamespace(table="table"),
        )  # fmt: skip
        monkeypatch.setattr(degraded, "Supervisor", self._make)
        monkeypatch.setattr(degraded, "ExporterChild", lambda subject, *given: (subject, *given))
        monkeypatch.setattr(on_change, "Changes", lambda reload, before: (reload, before))

    def _make(self, service: Any, limits: Any, *given: Any) -> Any:
        self.service, self.limits = service, limits
        return self.supervisor

    def __call__(self, listeners: dict[str, Any], seen: Any = None) -> Any:
        values = {"name": "app", "seen": seen, "children": [], "boot_timeout": 7.0, "graceful_timeout": 8.0}
        handed: Any = SimpleNamespace(values=values, board=lambda: "board")
        mailbox = Mailbox(lambda: None)
        found = degraded._supervisor(handed, listeners, "wakeup", self.signals, "generations", mailbox)  # type: ignore[arg-type]
        self.mailbox = mailbox
        return found


@pytest.fixture
def supervising(done: list[str], monkeypatch: pytest.MonkeyPatch) -> Supervising:
    return Supervising(done, monkeypatch)


def test_it_starts_no_worker(supervising: Supervising, done: list[str]) -> None:
    """It has no work for one; what it starts has neither its signals nor its descriptors."""
    assert supervising({"listener": "l"}) is supervising.supervisor
    assert (supervising.service.name, supervising.service.listeners, supervising.service.work) == ("app", ("l",), None)
    assert supervising.limits.graceful_timeout == 8.0
    supervising.service.forget()
    assert done == ["signals.put_back", "supervisor.forget"]
    assert supervising.supervisor.tasks.changes is None


@pytest.mark.parametrize(("listeners", "exported"), [
    ({"listener": "l", "metrics": "m"}, True), ({"listener": "l"}, False), ({"listener": None, "metrics": "m"}, False),
    ({"listener": "l", "metrics": None}, False), ({"listener": None}, False),
])  # fmt: skip
def test_metrics_go_on(listeners: dict[str, Any], exported: bool, supervising: Supervising) -> None:
    """Of the same pool, which is healthy as long as it serves; where there are any."""
    supervising(listeners)
    assert len(supervising.exporters) == exported
    if exported:
        subject, *given = supervising.exporters[0]
        assert (subject.name, subject.listeners, subject.pool, subject.may_fork()) == ("app", ("l",), True, True)
        assert given == ["m", "board", "fork", "forget_memory"]


def test_a_file_that_is_mended_is_a_reload(supervising: Supervising) -> None:
    """From what the previous image has seen last, also where that is nothing."""
    for seen in ({"a.py": [1, 2, 3]}, {}):
        supervising({"listener": "l"}, seen)
        reload, before = supervising.supervisor.tasks.changes
        assert before == seen
        reload()
        assert supervising.mailbox.take() is Command.RELOAD
