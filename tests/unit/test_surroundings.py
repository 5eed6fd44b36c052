"""What the process that becomes the master inherits, how much room it has, and the signals that come too early."""

import errno
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from prefork.commands import BY_SIGNAL
from prefork.errors import ConfigError, PreforkError
from prefork.surroundings import at_import, early_signals, inherited, room
from prefork.surroundings.at_import import open_standard_descriptors
from prefork.surroundings.early_signals import AskedToEnd, EarlySignals, waiting
from prefork.surroundings.inherited import forget_inherited, put_right
from prefork.surroundings.room import check_kernel, check_room
from prefork.surroundings.taken import keeping, signals_taken
from prefork.workers.signals import set_mask
from tests.support.programs.inside import signals_put_back

TOUCHED = tuple(map(int, (*BY_SIGNAL, signal.SIGALRM, signal.SIGCHLD, signal.SIGURG)))
TERM, HUP, USR1, ALRM, CHLD = map(int, (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGALRM, signal.SIGCHLD))


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No program handles a signal, nothing was inherited; afterwards all is as it was."""
    with signals_put_back(TOUCHED):
        for signum in TOUCHED:
            signal.signal(signum, signal.SIG_DFL)
        monkeypatch.setattr(inherited, "_blocked", set())
        monkeypatch.setattr(inherited, "_running", set())
        yield


def in_a_thread(call: Callable[[], Any]) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start()
    thread.join()
    return found[0]


# Standard descriptors.


class Descriptors:
    """os and sys of a process in which some of 0 to 2 are closed."""

    devnull, O_RDWR = os.devnull, os.O_RDWR

    def __init__(self, *closed: int, error: int = errno.EBADF) -> None:
        self.closed = set(closed)
        self.error = error
        self.inheritable: list[int] = []
        self.opened: list[tuple[int, str, bool]] = []
        self.stdin, self.stdout, self.stderr = (None if fd in closed else "its own" for fd in range(3))

    def fstat(self, fd: int) -> None:
        if fd in self.closed:
            raise OSError(self.error, "no")

    def open(self, path: str, flags: int) -> int:
        assert (path, flags) == ("/dev/null", os.O_RDWR)
        fd = min(self.closed)
        self.closed.remove(fd)
        return fd

    def set_inheritable(self, fd: int, inheritable: bool) -> None:
        assert inheritable
        self.inheritable.append(fd)

    def fdopen(self, fd: int, mode: str, closefd: bool) -> str:
        assert not closefd
        return f"{fd} {mode}"


@pytest.mark.parametrize(
    ("closed", "streams"),
    [
        ((), ("its own", "its own", "its own")), ((1,), ("its own", "1 w", "its own")),
        ((0, 1, 2), ("0 r", "1 w", "2 w")),
    ],
)  # fmt: skip
def test_closed_standard_descriptors(
    closed: tuple[int, ...], streams: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Are /dev/null, for whatever this process starts too, and Python has a stream there that leaves it open."""
    process = Descriptors(*closed)
    monkeypatch.setattr(at_import, "os", process)
    monkeypatch.setattr(at_import, "sys", process)
    open_standard_descriptors()
    assert (process.stdin, process.stdout, process.stderr) == streams
    assert process.inheritable == list(closed)
    assert process.closed == set()


def test_a_descriptor_that_cannot_be_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Is open, whatever it is."""
    process = Descriptors(1, error=errno.EIO)
    monkeypatch.setattr(at_import, "os", process)
    monkeypatch.setattr(at_import, "sys", process)
    open_standard_descriptors()
    assert process.inheritable == []


def test_a_stream_of_the_programs_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the descriptor is closed but the program has put something in its place."""
    process = Descriptors(1)
    process.stdout = "the program's"
    monkeypatch.setattr(at_import, "os", process)
    monkeypatch.setattr(at_import, "sys", process)
    open_standard_descriptors()
    assert process.stdout == "the program's"


# Blocked signals, and timers.


def test_blocked_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unblocked are those that were blocked at the import, are so now, and are used; what the program has blocked since
    then stays."""
    monkeypatch.setattr(inherited, "_blocked", {HUP, TERM, CHLD, int(signal.SIGPIPE)})
    signal.pthread_sigmask(signal.SIG_BLOCK, {HUP, CHLD, USR1, signal.SIGPIPE})
    assert put_right([HUP, TERM, USR1]) == {HUP, CHLD}
    assert set_mask(()) == {USR1, signal.SIGPIPE}


@pytest.mark.parametrize("signum", [signal.SIGALRM, signal.SIGCHLD, signal.SIGURG])
def test_signals_that_no_command_has(signum: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Are needed too."""
    monkeypatch.setattr(inherited, "_blocked", {int(signum)})
    signal.pthread_sigmask(signal.SIG_BLOCK, {signum})
    assert put_right([]) == {signum}


@pytest.mark.parametrize(
    ("running", "handler", "seconds", "stopped"),
    [
        (True, signal.SIG_DFL, 60.0, True), (True, lambda *_: None, 60.0, False), (True, signal.SIG_DFL, 0.0, False),
        (False, signal.SIG_DFL, 60.0, False),
    ],
)  # fmt: skip
def test_timers(
    running: bool, handler: Any, seconds: float, stopped: bool, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """One that ran at the import is stopped where nobody handles its signal, and that is said; others stay."""
    monkeypatch.setattr(inherited, "_running", {signal.ITIMER_REAL} if running else set())
    signal.signal(ALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    put_right([])
    assert bool(signal.getitimer(signal.ITIMER_REAL)[0]) == (bool(seconds) and not stopped)
    assert len(caplog.records) == stopped
    signal.signal(ALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, 60)
    put_right([])
    assert signal.getitimer(signal.ITIMER_REAL)[0], "by now it is the program's"


def test_nothing_is_inherited_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new image takes nothing of its previous one for an accident."""
    monkeypatch.setattr(inherited, "_blocked", {HUP})
    monkeypatch.setattr(inherited, "_running", {signal.ITIMER_REAL})
    forget_inherited()
    signal.pthread_sigmask(signal.SIG_BLOCK, {HUP})
    signal.setitimer(signal.ITIMER_REAL, 60)
    assert put_right([HUP]) == set()
    assert signal.getitimer(signal.ITIMER_REAL)[0]


# Signals, taken for as long as a pool serves.


class Noted:
    """Signals that note what they are asked for."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.blocked: set[int] = set()

    def __getattr__(self, name: str) -> Callable[..., list[int]]:
        def note(*arguments: object, then_block: set[int] | None = None) -> list[int]:
            self.done.append(name)
            self.blocked = then_block or set()
            return [USR1] if name == "take_unhandled" else []

        return note


def test_signals_of_a_pool(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """What came early first; the program's own are said; in the end what was unblocked is blocked again."""
    monkeypatch.setattr(inherited, "_blocked", {HUP})
    signal.pthread_sigmask(signal.SIG_BLOCK, {HUP})
    signals, early = Noted(), Noted()
    early.done = signals.done
    caplog.set_level("INFO")
    with signals_taken(signals, early):  # type: ignore[arg-type]
        assert signals.done == ["hand_over", "take_unhandled", "reap_ourselves", "outlive_readers", "hold_back"]
        assert set_mask(()) == set()
    assert signals.done[5:] == ["put_back"]
    assert signals.blocked == {HUP}
    assert [record.getMessage() for record in caplog.records] == ["the program handles SIGUSR1 itself"]


@pytest.mark.parametrize("main", [True, False])
def test_signals_of_a_pool_in_a_thread(main: bool) -> None:
    """Are left alone: only the main thread may take any."""
    signals = Noted()

    def serve() -> list[str]:
        with signals_taken(signals, None):  # type: ignore[arg-type]
            return list(signals.done)

    taken = serve() if main else in_a_thread(serve)
    assert taken == (["take_unhandled", "reap_ourselves", "outlive_readers", "hold_back"] if main else [])
    assert signals.done == [*taken, "put_back"]


def test_what_is_taken_stays_taken() -> None:
    """After a hook, also one that raises, in which an event loop may have run."""
    signals = Noted()
    keeping(signals, lambda: signals.done.append("act"))()  # type: ignore[arg-type]
    with pytest.raises(ZeroDivisionError):
        keeping(signals, lambda: 1 // 0)()  # type: ignore[arg-type]
    assert signals.done == ["act", "keep", "keep"]
    keeping(None, lambda: signals.done.append("act"))()
    assert signals.done[3:] == ["act"]


# Signals that come before it serves.


@pytest.fixture
def early(monkeypatch: pytest.MonkeyPatch) -> Iterator[EarlySignals]:
    monkeypatch.setattr(early_signals, "_waiting", None)
    early = EarlySignals()
    early.begin()
    yield early
    early.put_back()
    early._wakeup.close()


def test_early_signals(early: EarlySignals, monkeypatch: pytest.MonkeyPatch) -> None:
    """Are noted; TERM ends the import too, by an exception, and the next one by all means."""
    notes: list[int] = []
    statuses: list[int] = []
    monkeypatch.setattr(early, "_post", notes.append)
    monkeypatch.setattr(os, "_exit", statuses.append)
    signal.raise_signal(HUP)
    with pytest.raises(AskedToEnd):
        signal.raise_signal(TERM)
    assert statuses == []
    with pytest.raises(AskedToEnd):  # as nothing has ended
        signal.raise_signal(signal.SIGQUIT)
    assert statuses == [0]
    assert notes == [HUP, TERM, signal.SIGQUIT]


def test_they_are_handed_over_once(early: EarlySignals) -> None:
    """To the main thread; who has them ends them, too."""
    assert in_a_thread(waiting) is None
    assert waiting() is early
    assert waiting() is None
    early.end()
    assert callable(signal.getsignal(HUP))
    assert early._wakeup.fileno() != -1


def test_nobody_has_taken_them(early: EarlySignals) -> None:
    """Then nothing of them is left, the wake-up last."""
    signal.set_wakeup_fd(signal.set_wakeup_fd(-1))
    early.end()
    assert signal.getsignal(HUP) is signal.SIG_DFL
    assert signal.set_wakeup_fd(-1) == -1
    assert early._wakeup.fileno() == -1
    assert waiting() is None


# Room.


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_kernel_that_lets_us() -> None:
    """Every call is tried, and nothing is left open of it."""
    before = open_descriptors()
    check_kernel()
    assert open_descriptors() == before


@pytest.mark.parametrize("call", ["pidfd_open", "pidfd_send_signal", "memfd_create", "eventfd"])
@pytest.mark.parametrize(
    ("error", "reason", "hint"),
    [
        (OSError(errno.ENOSYS, "Not there"), "not there", "Linux 5.10"),
        (OSError(errno.EFBIG, "File too large"), "file too large", "ulimit -f"),
        (OSError("Odd"), "odd", "seccomp"),
    ],
    ids=["ENOSYS", "EFBIG", "no errno"],
)
def test_a_kernel_that_refuses(
    call: str, error: OSError, reason: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is told of by the call and its reason in a sentence, with a hint, and nothing is left open."""

    def refuse(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(signal if call == "pidfd_send_signal" else os, call, refuse)
    before = open_descriptors()
    with pytest.raises(PreforkError) as raised:
        check_kernel()
    assert str(raised.value) == f"could not start a pool: the kernel refuses {call}: {reason}"
    (note,) = raised.value.__notes__
    assert hint in note
    assert open_descriptors() == before


@pytest.mark.parametrize(
    ("workers", "open_now", "lent", "rehearsing", "needed"),
    [
        (10, 7, 0, False, 79), (10, 7, 0, True, 111), (10, 60, 50, False, 112), (10, 20, 10, False, 82),
        (1, 5, 0, False, 41),
    ],
)  # fmt: skip
def test_room_for_two_generations(
    workers: int, open_now: int, lent: int, rehearsing: bool, needed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two descriptors for each worker of either, 32 for the rest, and as many more in a rehearsal; those that are lent
    to workers of the other one are open already."""
    monkeypatch.setattr(room, "_open_now", lambda: open_now)
    monkeypatch.setattr(room, "descriptor_limit", SimpleNamespace(hard_limit=lambda: needed))
    check_room(workers, 0, lent, rehearsing=rehearsing)
    monkeypatch.setattr(room, "descriptor_limit", SimpleNamespace(hard_limit=lambda: needed - 1))
    with pytest.raises(ConfigError, match=f"take {needed} descriptors, and {needed - 1} is the limit") as raised:
        check_room(workers, 0, lent, rehearsing=rehearsing)
    assert "LimitNOFILE=" in raised.value.__notes__[0]


def test_room_for_whoever_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is lent, and this is no rehearsal."""
    monkeypatch.setattr(room, "_open_now", lambda: 7)
    monkeypatch.setattr(room, "descriptor_limit", SimpleNamespace(hard_limit=lambda: 79))
    check_room(10)
    monkeypatch.setattr(room, "descriptor_limit", SimpleNamespace(hard_limit=lambda: 78))
    with pytest.raises(ConfigError, match="take 79 descriptors"):
        check_room(10)


@pytest.mark.parametrize("proc", [True, False])
def test_how_many_are_open(proc: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One more when one more is, without /proc too; and none is left."""

    def no_proc(path: str) -> list[str]:
        raise FileNotFoundError(path)

    if not proc:
        monkeypatch.setattr(os, "listdir", no_proc)
    first = room._open_now()
    lowest = os.dup(0)
    assert room._open_now() == first + 1 if proc else room._open_now() > lowest
    os.close(lowest)
    assert room._open_now() == first
