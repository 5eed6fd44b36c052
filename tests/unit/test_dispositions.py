"""The signals that a process takes over: who hears them, and what is there again afterwards."""

import os
import select
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from prefork.workers import signals
from prefork.workers.signals import EVERY, TIMERS, Alarm, Signals, blocked, disarm, ignore, set_mask
from prefork.workers.wakeup import Wakeup
from tests.support.programs.inside import signals_put_back

TERM, INT, HUP, USR1, CHLD, ALRM, TTIN, TTOU = map(
    int,
    (
        signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD, signal.SIGALRM, signal.SIGTTIN,
        signal.SIGTTOU,
    ),
)  # fmt: skip
OTHERS: dict[int, Any] = {
    HUP: signal.SIG_IGN,
    USR1: signal.SIG_DFL,
    INT: signal.default_int_handler,
    TERM: signal.SIG_DFL,
}


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """The signals of these tests as a program that handles none has them; afterwards all is as it was."""
    with signals_put_back((TERM, INT, HUP, USR1, CHLD, ALRM, TTIN, TTOU)):
        for signum, handler in OTHERS.items():
            signal.signal(signum, handler)
        yield


class Taken:
    """Signals with a wake-up, that are closed without the mask of all."""

    def __init__(self, post: Callable[[int], None] | None = None) -> None:
        self.wakeup = Wakeup()
        self.signals = Signals(self.wakeup, post)

    def woken(self) -> bool:
        return bool(select.select([self.wakeup], [], [], 0)[0])

    def close(self) -> None:
        self.signals.put_back()
        self.wakeup.close()


@pytest.fixture
def heard() -> list[int]:
    return []


@pytest.fixture
def taken(heard: list[int]) -> Iterator[Taken]:
    taken = Taken(heard.append)
    yield taken
    taken.close()


def own(signum: int, frame: FrameType | None) -> None:
    """A handler of the program's."""


def raised(signum: int) -> None:
    signal.raise_signal(signum)


# The mask.


def test_the_mask_is_given_back() -> None:
    """Who sets it is told what it was; a block has every signal in it, and ends with what was there before."""
    assert set_mask({HUP}) == set()
    with blocked() as before:
        assert before == {HUP}
        assert set_mask(EVERY) >= {TERM, INT, HUP, USR1, CHLD, ALRM}
    assert set_mask(()) == {HUP}


def test_a_block_that_fails_ends() -> None:
    """An exception inside leaves no signal blocked."""
    with pytest.raises(ZeroDivisionError), blocked():
        raise ZeroDivisionError
    assert set_mask(()) == set()


# Taking and putting back.


def test_what_is_taken_is_heard(taken: Taken, heard: list[int]) -> None:
    """The handlers are called, the wait ends, and only what was taken is."""
    taken.signals.take({HUP: taken.signals.note, USR1: ignore})
    assert not taken.woken()
    raised(HUP)
    raised(USR1)
    assert heard == [HUP]
    assert taken.woken()
    assert signal.getsignal(TERM) is signal.SIG_DFL


def test_all_is_put_back(taken: Taken, heard: list[int]) -> None:
    """Dispositions and the wake-up descriptor are what they were; what they were is put back once."""
    read, write = os.pipe2(os.O_NONBLOCK)
    signal.set_wakeup_fd(write)
    taken.signals.take(dict.fromkeys(OTHERS, taken.signals.note))
    taken.signals.put_back()
    assert {signum: signal.getsignal(signum) for signum in OTHERS} == OTHERS
    signal.signal(HUP, own)
    taken.signals.put_back()
    assert signal.getsignal(HUP) is own
    assert signal.set_wakeup_fd(-1) == write
    taken.signals.put_back()
    assert signal.set_wakeup_fd(-1) == -1
    os.close(read)
    os.close(write)


def test_a_handler_of_somebody_elses(taken: Taken) -> None:
    """One that was not installed from Python cannot be put back: the default is."""
    taken.signals._before[HUP] = None
    taken.signals.put_back()
    assert signal.getsignal(HUP) is signal.SIG_DFL


def test_what_the_program_handles_is_the_programs(taken: Taken, heard: list[int]) -> None:
    """Those that nobody handles are taken; the others are said, and stay."""
    signal.signal(USR1, own)
    assert taken.signals.take_unhandled([HUP, INT, TERM, USR1]) == [USR1]
    assert signal.getsignal(USR1) is own
    for signum in (HUP, INT, TERM):
        raised(signum)
    assert heard == [HUP, INT, TERM]


@pytest.mark.parametrize("lost", [{TERM: signal.SIG_DFL}, {INT: signal.default_int_handler}])
def test_what_went_back_to_its_default_is_taken_again(lost: dict[int, Any], taken: Taken) -> None:
    """An event loop that has ended leaves its signals like that. What the program has put there stays."""
    note = taken.signals.note
    taken.signals.take({TERM: note, INT: note, HUP: note, USR1: note})
    changed: dict[int, Any] = {**lost, HUP: signal.SIG_DFL, USR1: own}
    for signum, handler in changed.items():
        signal.signal(signum, handler)
    taken.signals.keep()
    assert [signal.getsignal(signum) for signum in (TERM, INT, HUP, USR1)] == [note, note, note, own]


def test_nothing_is_looked_at_while_the_two_are_ours(taken: Taken) -> None:
    """TERM and INT tell: as long as they are in place no other is asked for."""
    taken.signals.take({TERM: taken.signals.note, INT: taken.signals.note, HUP: taken.signals.note})
    signal.signal(HUP, signal.SIG_DFL)
    taken.signals.keep()
    assert signal.getsignal(HUP) is signal.SIG_DFL


def test_children_are_ours_to_reap(taken: Taken) -> None:
    """SIG_IGN would have the kernel reap them; it is there again at the end. A handler is left alone."""
    signal.signal(CHLD, signal.SIG_IGN)
    taken.signals.reap_ourselves()
    assert signal.getsignal(CHLD) is signal.SIG_DFL
    taken.signals.put_back()
    assert signal.getsignal(CHLD) is signal.SIG_IGN
    signal.signal(CHLD, own)
    taken.signals.reap_ourselves()
    assert signal.getsignal(CHLD) is own


@pytest.mark.parametrize("background", [True, False])
def test_a_job_in_the_background(
    background: bool, taken: Taken, heard: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """TTIN and TTOU are not for us where a terminal sends them: ignored from then on, as it wants. Others are heard."""
    monkeypatch.setattr(signals, "in_background", lambda: background)
    wanted = [TTIN, TTOU, HUP]
    assert taken.signals.take_unhandled(wanted) == []
    for signum in wanted:
        raised(signum)
    assert heard == ([HUP] if background else wanted)
    assert [signal.getsignal(signum) is signal.SIG_IGN for signum in wanted] == [background, background, False]


class Terminal:
    """Of which the group 7 is in the foreground; this process is of `group`, and has it in these descriptors."""

    TTY = 99

    def __init__(self, monkeypatch: pytest.MonkeyPatch, group: int, fds: set[int]) -> None:
        self.fds = fds
        self.opened: list[tuple[str, int]] = []
        self.closed: list[int] = []
        for call in ("getpgrp", "tcgetpgrp", "open", "close"):
            monkeypatch.setattr(os, call, getattr(self, call))
        self.group = group

    def getpgrp(self) -> int:
        return self.group

    def tcgetpgrp(self, fd: int) -> int:
        if fd not in self.fds:
            raise OSError(25, "not a terminal")
        return 7

    def open(self, path: str, flags: int) -> int:
        self.opened.append((path, flags))
        if self.TTY not in self.fds:
            raise OSError(6, "no such device")
        return self.TTY

    def close(self, fd: int) -> None:
        self.closed.append(fd)


@pytest.mark.parametrize("fd", [0, 1, 2, Terminal.TTY, None])
@pytest.mark.parametrize("group", [7, 8])
def test_in_the_background(fd: int | None, group: int) -> None:
    """Of its terminal, whichever of the standard descriptors leads there, or none does; without one it is not."""
    with pytest.MonkeyPatch.context() as patch:
        terminal = Terminal(patch, group, set() if fd is None else {fd})
        background = signals.in_background()
    assert background == (group == 8 and fd is not None)
    flags = os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC
    assert terminal.opened == [("/dev/tty", flags)] * (fd not in (0, 1, 2))
    assert terminal.closed == [Terminal.TTY] * (fd == Terminal.TTY)


def test_what_a_child_does_not_take_over(taken: Taken) -> None:
    """It has what was there before, but for SIGCHLD: it has children, too, whose status it wants."""
    signal.signal(CHLD, signal.SIG_IGN)
    taken.signals.reap_ourselves()
    taken.signals.take({HUP: taken.signals.note})
    taken.signals.forget()
    assert [signal.getsignal(signum) for signum in (CHLD, HUP)] == [signal.SIG_DFL, signal.SIG_IGN]
    taken.signals.put_back()
    assert signal.getsignal(CHLD) is signal.SIG_DFL


def test_who_holds_still_dies_of_none(heard: list[int]) -> None:
    """Of these; a handler is installed, for SIG_IGN would go on to what is executed."""
    Signals.hold_still([TERM, HUP])
    raised(TERM)
    raised(HUP)
    assert [signal.getsignal(signum) for signum in (TERM, HUP)] == [ignore, ignore]
    assert signal.getsignal(USR1) is signal.SIG_DFL


def test_early_signals_are_handed_over(taken: Taken, heard: list[int]) -> None:
    """In their order, to who has the signals from now on; what the program has put over ours in between stays."""
    early = Taken()
    early.signals.take({HUP: early.signals.note, USR1: early.signals.note, INT: early.signals.note})
    raised(USR1)
    raised(HUP)
    assert heard == []
    signal.signal(INT, own)
    early.signals.hand_over(taken.signals)
    assert heard == [USR1, HUP]
    assert [signal.getsignal(signum) for signum in (HUP, USR1, INT)] == [signal.SIG_IGN, signal.SIG_DFL, own]
    assert early.wakeup.fileno() == -1
    early.signals.hand_over(taken.signals)
    assert heard == [USR1, HUP]


def test_the_end(heard: list[int]) -> None:
    """From then on no signal is heard, and nothing is left open."""
    taken = Taken(heard.append)
    taken.signals.take({HUP: taken.signals.note})
    taken.signals.close()
    assert set_mask(()) == EVERY - {int(signal.SIGKILL), int(signal.SIGSTOP)}
    assert signal.getsignal(HUP) is signal.SIG_IGN
    assert taken.wakeup.fileno() == -1
    assert heard == []


# The alarm.


def _ring() -> None:
    raise ZeroDivisionError


def test_an_alarm_interrupts_python() -> None:
    """It rings where the main thread is, again and again; one that is cancelled leaves nothing behind."""
    alarm = Alarm(_ring)

    def wait(seconds: float) -> None:
        if seconds:
            alarm.set(seconds)  # on a busy machine it may ring before the wait
        signal.sigwaitinfo({HUP})

    for seconds in (0.001, 0):
        with pytest.raises(ZeroDivisionError):
            wait(seconds)
    alarm.set(60)
    left, period = signal.getitimer(signal.ITIMER_REAL)
    assert 59 < left <= 60
    assert round(period, 6) == 0.500123, "by which it is told from a timer of the program's"
    alarm.cancel()
    alarm._note(ALRM, None)  # one that was on its way
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert signal.getsignal(ALRM) is signal.SIG_DFL


def test_an_alarm_that_the_program_took() -> None:
    """Its handler and its timer stay when ours is cancelled; so does its handler alone, without our timer."""
    alarm = Alarm(_ring)
    alarm.set(60)
    signal.signal(ALRM, own)
    signal.setitimer(signal.ITIMER_REAL, 50, 0.5)
    alarm.cancel()
    assert signal.getitimer(signal.ITIMER_REAL)[0] > 49
    assert signal.getsignal(ALRM) is own
    signal.setitimer(signal.ITIMER_REAL, 0)
    alarm = Alarm(_ring)
    alarm.set(60)
    signal.signal(ALRM, own)
    alarm.cancel()
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert signal.getsignal(ALRM) is own


def test_timers_of_the_previous_image() -> None:
    """All three end, and what they have sent is gone."""
    set_mask(EVERY)
    for timer in TIMERS:
        signal.setitimer(timer, 0.001, 0.001)
    while not set(TIMERS.values()) <= signal.sigpending():
        pass
    disarm()
    assert signal.sigpending() == set()
    assert [signal.getitimer(timer) for timer in TIMERS] == [(0, 0)] * 3


@pytest.mark.parametrize(("asked", "set_to"), [(60.0, 60.0), (0.0, 0.001), (-1.0, 0.001)])
def test_an_alarm_that_kills(asked: float, set_to: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has its default action and is not blocked, whatever the program did; what is past is in a millisecond."""
    timers: list[tuple[int, float]] = []
    monkeypatch.setattr(signal, "setitimer", lambda which, seconds: timers.append((which, seconds)))
    signal.signal(ALRM, own)
    set_mask({ALRM, HUP})
    Signals.kill_me_after(asked)
    assert set_mask(()) == {HUP}
    assert signal.getsignal(ALRM) is signal.SIG_DFL
    assert timers == [(signal.ITIMER_REAL, set_to)]
