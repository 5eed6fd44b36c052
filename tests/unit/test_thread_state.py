"""The state of a thread that stays: it is that of a new one, or the thread is told to end."""

import asyncio
import contextvars
import decimal
import logging
import os
import signal
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from prefork.workers import thread_state
from prefork.workers.thread_state import ASK_KERNEL_EVERY_NS, context_of_threads, state_of_thread

LOCAL = threading.local()
WEAKLY = weakref.WeakKeyDictionary[threading.Thread, int]()
VARIABLE: contextvars.ContextVar[int] = contextvars.ContextVar("variable")


def in_thread(body: Callable[[Callable[[], bool]], Any]) -> Any:
    """What `body` returns in a thread of its own; it is given the function that looks at that."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(body(state_of_thread())))
    thread.start()
    thread.join()
    assert results, "it has raised"
    return results[0]


@pytest.fixture
def hooks() -> Iterator[None]:
    """New threads are traced and profiled afterwards as they were before."""
    before = threading.gettrace(), threading.getprofile()
    yield
    threading.settrace(before[0])
    threading.setprofile(before[1])


def test_this_python_is_known() -> None:
    """Else each thread would serve one request only."""
    assert in_thread(lambda is_unchanged: is_unchanged())
    assert [at is not None for at in thread_state._where()] == [sys.version_info >= (3, 13)]


@pytest.mark.parametrize(
    "uses",
    [
        lambda: setattr(LOCAL, "value", 1),
        lambda: hasattr(LOCAL, "value"),
        lambda: asyncio.run(asyncio.sleep(0)),
    ],
    ids=["set", "asked", "asyncio"],
)
def test_whoever_uses_a_local_has_changed_its_thread(uses: Callable[[], object]) -> None:
    assert in_thread(lambda is_unchanged: (is_unchanged(), uses(), is_unchanged())[::2]) == (True, False)


@pytest.mark.parametrize(
    "uses",
    [
        lambda: repr([[1]]),  # CPython notes in the thread's dict which object it is in
        lambda: decimal.Decimal(1) / 3,
        lambda: logging.getLogger("test").debug("%r", [1]),
        lambda: socket.socketpair()[0].close(),
        lambda: time.strptime("2026", "%Y"),
        lambda: VARIABLE.set(1),
        lambda: (threading.enumerate(), repr(threading.current_thread())),
        lambda: threading.Thread(target=print).name,
    ],
    ids=["repr", "decimal", "logging", "socket", "strptime", "context variable", "threads", "a thread"],
)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_what_every_request_does_changes_nothing(uses: Callable[[], object]) -> None:
    assert in_thread(lambda is_unchanged: [(uses(), is_unchanged())[1] for _ in range(3)]) == [True] * 3


def test_others_use_theirs() -> None:
    LOCAL.value = "mine"
    assert in_thread(lambda is_unchanged: is_unchanged())
    assert LOCAL.value == "mine"
    del LOCAL.value


@pytest.mark.parametrize(
    "leaves",
    [
        lambda: setattr(threading.current_thread(), "user", "somebody"),
        lambda: setattr(threading.current_thread(), "name", "somebody's"),
        lambda: sys.setprofile(lambda *arguments: None),
        lambda: threading.setprofile(lambda *arguments: None),
        lambda: threading.settrace(lambda *arguments: None),
        lambda: WEAKLY.setdefault(threading.current_thread(), 1),
        lambda: weakref.finalize(threading.current_thread(), bool),
        lambda: sys.set_asyncgen_hooks(firstiter=lambda generator: None),
        lambda: sys.set_coroutine_origin_tracking_depth(5),
    ],
    ids=[
        "attribute", "name", "profile", "profile of new ones", "trace of new ones", "key of a WeakKeyDictionary",
        "finalize", "hooks of generators", "origins of coroutines",
    ],
)  # fmt: skip
def test_what_else_changes_a_thread(leaves: Callable[[], object], hooks: None) -> None:
    """A thread in which that is left is not used again."""
    assert in_thread(lambda is_unchanged: (is_unchanged(), leaves(), is_unchanged())[::2]) == (True, False)


@pytest.mark.parametrize(
    "leaves",
    [
        lambda: os.nice(1),
        pytest.param(
            lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}),
            marks=pytest.mark.skipif(len(os.sched_getaffinity(0)) == 1, reason="there is no other set of CPUs"),
        ),
        lambda: os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0)),
        lambda: signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1]),
    ],
    ids=["nice level", "CPUs", "scheduler", "blocked signals"],
)
def test_what_the_kernel_keeps_for_a_thread(leaves: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """That changes a thread, too. It is seen after a millisecond: of a request that lasts so long, at its end."""
    times = iter((0, ASK_KERNEL_EVERY_NS - 1, ASK_KERNEL_EVERY_NS))
    monkeypatch.setattr(thread_state, "monotonic_ns", lambda: next(times))

    def body(is_unchanged: Callable[[], bool]) -> list[bool]:
        found = [is_unchanged()]
        leaves()
        return [*found, is_unchanged(), is_unchanged()]

    assert in_thread(body) == [True, True, False]


def test_another_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the word is not found, or is another, no thread is used again."""
    monkeypatch.setattr(thread_state, "_where", list)
    assert not in_thread(lambda is_unchanged: is_unchanged())


def test_word_that_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python that keeps the values in neither place."""
    monkeypatch.setattr(thread_state, "_dict", dict)
    monkeypatch.setattr(thread_state, "_words", lambda: memoryview(bytes(64)).cast("Q"))
    assert thread_state._where.__wrapped__() == []


def test_the_context_of_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is empty, or the starter's where this Python is told so; what a request sets in it is nobody else's."""
    inherits = bool(getattr(sys.flags, "thread_inherit_context", False))
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)
    variable.set(1)
    for flag in (inherits, not inherits, inherits):
        if flag is not inherits:
            monkeypatch.setattr(
                thread_state, "sys", SimpleNamespace(flags=SimpleNamespace(thread_inherit_context=flag))
            )
        context = context_of_threads()
        assert [context.copy().run(lambda: (variable.get(), variable.set(5))[0]) for _ in range(2)] == [int(flag)] * 2
        flags = SimpleNamespace(thread_inherit_context=not flag)
        monkeypatch.setattr(thread_state, "sys", SimpleNamespace(flags=flags))
    assert variable.get() == 1
    assert decimal.getcontext().prec == 28
