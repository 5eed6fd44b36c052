"""The orderly end of a worker: what is waited for, flushed and run, and what of the master's is not."""

import _thread
import concurrent.futures.process
import concurrent.futures.thread
import logging
import multiprocessing.process
import multiprocessing.util
import sys
import threading
from _thread import get_ident
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from prefork.metrics.log_events import LogEvent
from prefork.workers import ending
from prefork.workers.ending import DrainHook

HUNG_S = 60.0


@pytest.fixture
def done() -> list[str]:
    return []


def events(caplog: pytest.LogCaptureFixture) -> list[LogEvent]:
    return [record.__dict__["event"] for record in caplog.records]


# What the master has begun.


class Weak:
    """weakref.finalize with one object of the master's."""

    def __init__(self) -> None:
        self.atexit = True
        self._registry = {self: None}

    def _exitfunc(self) -> None: ...


class AtExit:
    """atexit, without a process that ends."""

    def __init__(self, done: list[str]) -> None:
        self._registered: list[Callable[[], object]] = [lambda: done.append("of the master")]

    def register(self, function: Callable[..., object], *args: object) -> None:
        self._registered.append(partial(function, *args) if args else function)

    def _clear(self) -> None:
        self._registered.clear()

    def _run_exitfuncs(self) -> None:
        while self._registered:
            self._registered.pop()()


@pytest.fixture
def at_exit(done: list[str], monkeypatch: pytest.MonkeyPatch) -> AtExit:
    at_exit = AtExit(done)
    monkeypatch.delitem(sys.modules, "coverage", raising=False)  # of another test; it may be loaded or not
    monkeypatch.setattr(ending, "atexit", at_exit)
    return at_exit


@pytest.fixture
def weak(monkeypatch: pytest.MonkeyPatch) -> Weak:
    weak = Weak()
    monkeypatch.setattr(ending, "finalize", weak)
    return weak


REGISTRIES: list[tuple[ModuleType, str]] = [
    (multiprocessing.process, "_children"),
    (multiprocessing.util, "_finalizer_registry"),
    (concurrent.futures.thread, "_threads_queues"),
    (concurrent.futures.process, "_threads_wakeups"),
]


@pytest.fixture
def registries(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, int]]:
    """What the standard library knows of the master's threads and processes."""
    found: list[dict[str, int]] = [{"of the master": 1} for _ in REGISTRIES]
    for (module, name), registry in zip(REGISTRIES, found, strict=True):
        monkeypatch.setattr(module, name, registry)
    return found


def test_the_masters_clean_up_is_the_masters(
    at_exit: AtExit, weak: Weak, registries: list[dict[str, int]], done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of it runs in a worker. What multiprocessing and weakref do at the end of a process is done for its own."""
    monkeypatch.setattr(multiprocessing.util, "_exit_function", lambda: done.append("multiprocessing"))
    monkeypatch.setattr(weak, "_exitfunc", lambda: done.append("finalize"), raising=False)
    ending.forget_master()
    assert registries == [{}, {}, {}, {}]
    assert not weak.atexit
    assert done == []
    at_exit._run_exitfuncs()
    assert done == ["multiprocessing", "finalize"]


def test_what_is_not_loaded_is_not_loaded_for_that(
    at_exit: AtExit, weak: Weak, registries: list[dict[str, int]], done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program without executors and multiprocessing has nothing there to forget."""
    for module, _ in REGISTRIES:
        monkeypatch.delitem(sys.modules, module.__name__)
    ending.forget_master()
    ending.begin_anew()
    assert all(registries)
    assert at_exit._registered == [weak._exitfunc]
    assert not {module.__name__ for module, _ in REGISTRIES} & set(sys.modules)


class Measured:
    """What coverage.py has begun in the master."""

    def __init__(self, done: list[str], **data: object) -> None:
        self._data = SimpleNamespace(**data) if data else None
        self.stop, self.save = (partial(done.append, name) for name in ("stop", "save"))


@pytest.mark.parametrize(("suffix", "own"), [(None, True), ("a", "a"), ("", True)])
def test_what_coverage_has_measured(
    suffix: str | None, own: object, at_exit: AtExit, weak: Weak, done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is saved last of all, to a file of the worker's own."""
    measured: Any = Measured(done, _suffix=suffix)
    monkeypatch.setitem(sys.modules, "coverage", SimpleNamespace(Coverage=SimpleNamespace(current=lambda: measured)))
    monkeypatch.setattr(weak, "_exitfunc", lambda: done.append("finalize"), raising=False)
    for module, _ in REGISTRIES:
        monkeypatch.delitem(sys.modules, module.__name__, raising=False)
    ending.forget_master()
    at_exit._run_exitfuncs()
    assert done == ["finalize", "stop", "save"]
    assert measured._data._suffix == own


def test_coverage_of_another_version(done: list[str], caplog: pytest.LogCaptureFixture) -> None:
    """What it does not have is left alone; what it raises is no matter; and nothing may have been measured."""
    without, unknown = Measured(done), Measured(done, other=1)
    ending._save_coverage(None)
    ending._save_coverage(without)
    ending._save_coverage(unknown)
    assert done == ["stop", "save"] * 2
    assert vars(unknown._data) == {"other": 1}
    ending._save_coverage(SimpleNamespace())
    assert "could not save what coverage measured" in caplog.text


def test_what_multiprocessing_has_started(done: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Is ended before its program is, where that is asked for; that it cannot be is no matter."""

    def fails() -> None:
        done.append("ended")
        raise ZeroDivisionError

    monkeypatch.setattr(multiprocessing.util, "_run_finalizers", fails)
    ending.end_processes()
    assert done == ["ended"]
    monkeypatch.delitem(sys.modules, "multiprocessing.util")
    ending.end_processes()
    assert done == ["ended"]


def test_queues_and_managers_begin_anew(done: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that multiprocessing has forked."""
    monkeypatch.setattr(multiprocessing.util, "_run_after_forkers", lambda: done.append("anew"))
    ending.begin_anew()
    assert done == ["anew"]


# The end.


class Clock:
    """Time that passes only while a thread is waited for."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class FakeThread:
    """A thread that ends by itself after so many seconds; None: when Python joins it."""

    daemon = False

    def __init__(self, name: str, clock: Clock, lasts: float | None) -> None:
        self.name, self._clock, self.lasts = name, clock, lasts
        self.waits: list[float] = []

    def join(self, timeout: float) -> None:
        self.waits.append(timeout)
        self._clock.now += timeout if self.lasts is None else min(timeout, self.lasts)
        if self.lasts is not None and self.lasts <= timeout:
            self.lasts = 0.0


class End:
    """An end of this process that is none."""

    def __init__(self, done: list[str], clock: Clock) -> None:
        self.clock = clock
        self.threads: list[Any] = []
        self.done = done

    def enumerate(self) -> list[Any]:
        alive = [each for each in self.threads if getattr(each, "lasts", None) != 0.0]
        return [threading.main_thread(), *alive]

    def current_thread(self) -> threading.Thread:
        return threading.main_thread()

    def _shutdown(self) -> None:
        self.done.append("joined")


@pytest.fixture
def end(done: list[str], at_exit: AtExit, monkeypatch: pytest.MonkeyPatch) -> Iterator[End]:
    """Of a process without exporters; what its program wants at exit is one line."""
    clock = Clock()
    end = End(done, clock)
    monkeypatch.setattr(ending, "threading", end)
    monkeypatch.setattr(ending, "monotonic", clock)
    at_exit._clear()
    at_exit.register(lambda: done.append("at exit"))
    for name in ending.FLUSHED:
        monkeypatch.delitem(sys.modules, name, raising=False)
    caplog_level = logging.getLogger("prefork.server").level
    logging.getLogger("prefork.server").setLevel(logging.INFO)
    yield end
    logging.getLogger("prefork.server").setLevel(caplog_level)


def exporter(name: str, monkeypatch: pytest.MonkeyPatch, **attributes: object) -> None:
    module = ModuleType(name)
    vars(module).update(attributes)
    monkeypatch.setitem(sys.modules, name, module)


def test_threads_then_exporters_then_at_exit(
    end: End, done: list[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As any Python process does it, in that order; nothing is said of it."""
    exporter("sentry_sdk", monkeypatch, flush=lambda: done.append("flushed"))
    ending.finish()
    assert done == ["joined", "flushed", "at exit"]
    assert caplog.records == []


def test_threads_that_were_told_to_end_do_so_quietly(end: End, caplog: pytest.LogCaptureFixture) -> None:
    """Three tenths of a second for all of them together, and no line for those that take no longer."""
    end.threads = [FakeThread("a", end.clock, 0.1), FakeThread("b", end.clock, 0.1)]
    ending.finish()
    assert [thread.waits for thread in end.threads] == [[pytest.approx(0.3)], [pytest.approx(0.2)]]
    assert caplog.records == []


def test_threads_that_run_on_are_named(end: End, done: list[str], caplog: pytest.LogCaptureFixture) -> None:
    """Once the time is over nobody waits any longer before that is said; then they are joined, whatever it takes."""
    end.threads = [FakeThread("a", end.clock, None), FakeThread("b", end.clock, 0.1), FakeThread("c", end.clock, None)]
    end.threads[1].daemon = True
    ending.finish()
    assert [thread.waits for thread in end.threads] == [[pytest.approx(0.3)], [], [0.0]]
    assert events(caplog) == [LogEvent.THREADS_AWAITED]
    assert "a, c;" in caplog.text
    assert done == ["joined", "at exit"]


def test_threads_of_an_executor_are_its_own_to_end(
    end: End, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They end when it is shut down, which Python does when it joins threads. Nobody need have loaded executors."""
    thread = FakeThread("executor", end.clock, None)
    end.threads = [thread]
    monkeypatch.setattr(concurrent.futures.thread, "_threads_queues", {thread: None})
    ending.finish()
    assert thread.waits == []
    monkeypatch.delitem(sys.modules, "concurrent.futures.thread")
    ending.finish()
    assert len(thread.waits) == 1


def test_threads_that_cannot_be_joined(
    end: End, done: list[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest of the end comes all the same."""
    monkeypatch.setattr(end, "_shutdown", lambda: 1 / 0, raising=False)
    ending.finish()
    assert events(caplog) == [LogEvent.THREADS_FAILED]
    assert done == ["at exit"]


def test_exporters_are_flushed(end: End, done: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each that is loaded, by what its provider has for that; one of the user's may have nothing."""

    class Provider:
        def __init__(self, name: str) -> None:
            self.force_flush = lambda: done.append(name)

    exporter("opentelemetry.trace", monkeypatch, get_tracer_provider=lambda: Provider("trace"))
    exporter("opentelemetry.metrics", monkeypatch, get_meter_provider=lambda: object())
    exporter("opentelemetry._logs", monkeypatch, get_logger_provider=lambda: Provider("logs"))
    ending.finish()
    assert done == ["joined", "trace", "logs", "at exit"]


def test_an_exporter_that_fails(
    end: End, done: list[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is named, and costs no other."""
    exporter("sentry_sdk", monkeypatch)
    exporter("opentelemetry._logs", monkeypatch, get_logger_provider=lambda: 1 / 0)
    ending.finish()
    assert events(caplog) == [LogEvent.FLUSH_FAILED] * 2
    assert "could not flush sentry_sdk" in caplog.text
    assert done == ["joined", "at exit"]


# worker_draining().


class Hook:
    """A hook that takes until it is let."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls: list[int] = []
        self.begun, self.may_end = threading.Event(), threading.Event()
        self._error = error

    def __call__(self) -> None:
        self.calls.append(get_ident())
        self.begun.set()
        assert self.may_end.wait(HUNG_S)
        if self._error is not None:
            raise self._error


def ended(hook: DrainHook) -> threading.Event:
    """Set when `wait()` has returned, in a thread of its own."""
    over = threading.Event()

    def wait() -> None:
        hook.wait()
        over.set()

    threading.Thread(target=wait).start()
    return over


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(function: object, arguments: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_thread, "start_new_thread", fails)


def test_the_hook_is_called_once_beside_the_loop() -> None:
    """begin() does not wait for it, wait() does; a second drain calls it no more."""
    hook = Hook()
    drain = DrainHook(hook)
    drain.begin()
    assert hook.begun.wait(HUNG_S)
    drain.begin()
    over = ended(drain)
    assert not over.is_set()
    hook.may_end.set()
    assert over.wait(HUNG_S)
    drain.begin()
    drain.wait()
    assert len(hook.calls) == 1
    assert hook.calls[0] != get_ident()


def test_a_wait_is_for_the_hook() -> None:
    """wait() cannot return while it runs: what holds it is held from the beginning."""
    hook = Hook()
    drain = DrainHook(hook)
    drain.begin()
    assert drain._running.locked()
    assert hook.begun.wait(HUNG_S)
    assert drain._running.locked()
    hook.may_end.set()
    drain.wait()
    assert not drain._running.locked()


def test_a_hook_that_nobody_began_is_called_at_the_end() -> None:
    """In the thread that waits."""
    hook = Hook()
    hook.may_end.set()
    drain = DrainHook(hook)
    drain.wait()
    drain.wait()
    drain.begin()
    assert hook.calls == [get_ident()]


def test_without_a_thread_the_hook_is_called_at_the_end(no_threads: None) -> None:
    """Where none can be started, again and again, it is called once all the same."""
    hook = Hook()
    hook.may_end.set()
    drain = DrainHook(hook)
    drain.begin()
    drain.begin()
    assert hook.calls == []
    drain.wait()
    assert hook.calls == [get_ident()]


def test_a_server_without_the_hook(no_threads: None) -> None:
    """Nothing is begun, and nothing waited for."""
    drain = DrainHook()
    drain.begin()
    drain.wait()
    drain.wait()


def test_a_hook_that_raises(caplog: pytest.LogCaptureFixture) -> None:
    """It is over, and named."""
    hook = Hook(ValueError("mine"))
    hook.may_end.set()
    drain = DrainHook(hook)
    drain.wait()
    assert events(caplog) == [LogEvent.DRAIN_HOOK_FAILED]
    assert "ValueError: mine" in caplog.text
