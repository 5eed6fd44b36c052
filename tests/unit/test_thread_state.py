"""The state of a thread that stays: after each request it is that of a new one, or the thread is told to end."""

import contextvars
import decimal
import sys
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from prefork.workers import thread_state
from prefork.workers.thread_state import context_of_threads, state_of_thread

LOCAL = threading.local()


class Initialised(threading.local):
    def __init__(self, made: list[int]) -> None:
        made.append(threading.get_ident())


class Value:
    """Does something when it goes."""

    def __init__(self, does: Callable[[], object]) -> None:
        self._does = does

    def __del__(self) -> None:
        self._does()


def in_thread(body: Callable[[Callable[[], bool]], Any]) -> Any:
    """What `body` returns in a thread of its own; it is given the function that puts the state of that back."""
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


def test_this_python_can() -> None:
    """Else each thread would serve one request only."""
    assert in_thread(lambda put_back: put_back())
    assert thread_state._where is not None
    assert len(thread_state._where) == (2 if sys.version_info >= (3, 13) else 0)


def test_values_end_with_the_request() -> None:
    """As at the end of a thread: they are gone, and nobody holds them; other threads have theirs."""
    ended: list[int] = []
    LOCAL.value = "mine"

    def body(put_back: Callable[[], bool]) -> list[bool]:
        found = []
        for number in range(3):
            found.append(hasattr(LOCAL, "value"))
            LOCAL.value = Value(lambda number=number: ended.append(number))  # type: ignore[misc]
            found.append(put_back() and len(ended) == number + 1)
        return found

    assert in_thread(body) == [False, True] * 3
    assert LOCAL.value == "mine"
    del LOCAL.value


def test_a_subclass_is_initialised_anew() -> None:
    """Its `__init__` runs for each request that uses it, as it does for each thread."""
    made: list[int] = []
    local = Initialised(made)

    def body(put_back: Callable[[], bool]) -> None:
        for _ in range(3):
            vars(local)
            assert put_back()

    in_thread(body)
    assert len(made) == 1 + 3


def test_a_local_that_is_gone() -> None:
    """One that the request has made itself, and one that ends before its request does."""

    def body(put_back: Callable[[], bool]) -> bool:
        local = threading.local()
        local.value = 1
        del local
        other = threading.local()
        other.value = 1
        return put_back() and not hasattr(other, "value")

    assert in_thread(body)


def test_a_value_that_uses_one_as_it_goes() -> None:
    """It goes, and so does what it leaves; where that never ends, the thread does."""

    def once(put_back: Callable[[], bool]) -> bool:
        LOCAL.value = Value(lambda: setattr(LOCAL, "late", 1))
        return put_back() and not hasattr(LOCAL, "late")

    left = 5

    def again() -> None:
        nonlocal left
        left -= 1
        if left:
            LOCAL.value = Value(again)

    def for_ever(put_back: Callable[[], bool]) -> bool:
        again()
        return put_back()

    assert in_thread(once)
    assert not in_thread(for_ever)


def test_what_repr_leaves() -> None:
    """CPython notes there which object it is in; that is put back with the rest."""
    assert in_thread(lambda put_back: (repr([[1]]), put_back(), repr([[1]]), put_back())) == ("[[1]]", True) * 2


@pytest.mark.parametrize(
    "leaves",
    [
        lambda: setattr(threading.current_thread(), "user", "somebody"),
        lambda: setattr(threading.current_thread(), "name", "somebody's"),
        lambda: sys.setprofile(lambda *arguments: None),
        lambda: threading.setprofile(lambda *arguments: None),
        lambda: threading.settrace(lambda *arguments: None),
    ],
    ids=["attribute", "name", "profile", "profile of new ones", "trace of new ones"],
)
def test_what_cannot_be_put_back(leaves: Callable[[], object], hooks: None) -> None:
    """A thread in which that is left is not used again."""
    assert in_thread(lambda put_back: (put_back(), leaves(), put_back())[::2]) == (True, False)


def test_another_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the words are not found, or are others, no thread is used again."""
    monkeypatch.setattr(thread_state, "_where", thread_state._where)  # which it notes
    monkeypatch.setattr(thread_state, "_looked", False)
    monkeypatch.setattr(thread_state, "_tried", lambda where: None)
    assert not in_thread(lambda put_back: put_back())


def test_a_place_that_is_not_the_right_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried before it is used."""
    monkeypatch.setattr(thread_state.Locals, "forget", lambda held: True)
    assert in_thread(lambda put_back: thread_state._tried(range(0))) is None
    assert thread_state._tried(None) is None


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
