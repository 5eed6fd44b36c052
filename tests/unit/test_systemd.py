"""What a service manager passes on and is told: the environment, and facts in, messages out."""

import fcntl
import os
import re
import socket
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork import systemd
from prefork.errors import ConfigError
from prefork.master.notify import Notices, Notifier, NotifyFacts, address_of, status_line
from prefork.master.policy import Phase
from prefork.systemd import Given, Passed, stored_name, take
from tests.support.hosts.manager import Manager

PHASES = (Phase.STARTING, Phase.RUNNING, Phase.DRAINING, Phase.STOPPING, Phase.STOPPED)


def facts(phase: Phase = Phase.RUNNING, ready: int = 2, starting: int = 0, leaving: int = 0, enough: int = 2,
          boot_timeout: float = 60.0, reloading: bool = False, degraded: str = "") -> NotifyFacts:  # fmt: skip
    return NotifyFacts(phase, ready, starting, leaving, enough, boot_timeout, reloading, degraded)


BOOTING = facts(Phase.STARTING, ready=0, starting=2)


def words(messages: list[str]) -> list[str]:
    """The lines that say a state."""
    states = ("READY", "RELOADING", "STOPPING")
    return [line for message in messages for line in message.split("\n") if line.partition("=")[0] in states]


# The sockets that were passed.


def test_sockets_that_are_still_those(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is passed and is a socket is known by its inode: one that was closed, or whose number something else has by
    now, is none any more, nor is one that the previous image did not hand on."""
    known: dict[int, tuple[int, int]] = {}
    monkeypatch.setattr(systemd, "_at_start", known)
    monkeypatch.setattr(systemd, "_only", None)
    fds = []
    for make in (socket.socket, socket.socket, socket.socket, partial(open, os.devnull)):
        with make() as each:
            fds.append(fcntl.fcntl(each.fileno(), fcntl.F_DUPFD_CLOEXEC, 200))
    first = fds[0]
    assert fds == [first, first + 1, first + 2, first + 3]
    monkeypatch.setattr(systemd, "FIRST_FD", first)
    systemd.note_sockets({"LISTEN_FDS": "5", "LISTEN_PID": str(os.getpid())})
    assert known.keys() == set(fds[:3])
    assert systemd.still_open() == fds[:3]
    os.close(fds[0])
    os.dup2(fds[3], fds[1], inheritable=False)
    assert systemd.still_open() == [fds[2]]
    systemd.keep_only({fds[0]})
    assert systemd.still_open() == []
    for fd in fds[1:]:
        os.close(fd)


# The environment.


def test_variables_are_taken_out() -> None:
    """What was passed to this pid is known by name, and nothing of it stays in the environment."""
    environ = {
        "LISTEN_FDS": "3", "LISTEN_PID": "7", "LISTEN_FDNAMES": "web:admin", "NOTIFY_SOCKET": "@x", "PATH": "/bin",
        "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "7", "LISTEN_PIDFDID": "1234",
    }  # fmt: skip
    found = take(environ, 7)
    assert environ == {"PATH": "/bin"}
    assert found.passed == (Passed(3, "web"), Passed(4, "admin"), Passed(5, "unknown"))
    assert (found.refusal, found.notify, found.watchdog_s) == ("", "@x", 3.0)


@pytest.mark.parametrize(
    ("environ", "refusal"),
    [
        ({}, "LISTEN_FDS is not set"),
        ({"LISTEN_FDS": "1"}, "LISTEN_PID is not set, and this process is 7"),
        ({"LISTEN_FDS": "1", "LISTEN_PID": "8"}, "LISTEN_PID is 8, and this process is 7"),
        ({"LISTEN_FDS": "x", "LISTEN_PID": "7"}, "LISTEN_FDS is 'x', not a number"),
    ],
)
def test_sockets_of_another_process(environ: dict[str, str], refusal: str) -> None:
    """What is not for this pid is left alone, with the reason; the variables go all the same."""
    found = take(environ, 7)
    assert found.passed == ()
    assert refusal in found.refusal
    assert environ == {}


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [("1000000", "", 1.0), ("1000000", "7", 1.0), ("1000000", "8", None), ("0", "", None), ("", "", None),
     ("soon", "7", None)],
)  # fmt: skip
def test_watchdog_of_another_process(usec: str, pid: str, seconds: float | None) -> None:
    """WATCHDOG_PID, where it is set, must be ours."""
    assert take({"WATCHDOG_USEC": usec, "WATCHDOG_PID": pid}, 7).watchdog_s == seconds


@pytest.mark.parametrize(("text", "address"), [("/run/n", "/run/n"), ("@a/b", "\0a/b"), ("vsock:2:1", ""), ("", "")])
def test_notify_socket(text: str, address: str) -> None:
    """A path and an abstract name are understood; another kind is none."""
    assert address_of(text) == address


def test_a_stored_name_is_the_address() -> None:
    """As far as a name may have its characters; its end is cut."""
    assert stored_name("STREAM '/run/a b~' 1") == "prefork STREAM '/run/a b~' 1"
    assert stored_name("a:b%c\n\x1fé\x7f") == "prefork a%3Ab%25c%0A%1F%C3%A9%7F"
    assert stored_name("x" * 300) == "prefork " + "x" * 247


WEB, ADMIN, KEPT = Passed(3, "web"), Passed(4, "admin"), Passed(5, "prefork here")
WEB_AGAIN = Passed(6, "web")


TWICE = "2 were passed as web: an empty ListenStream= before that of a drop-in takes back the unit's own"


@pytest.mark.parametrize(("passed", "name", "found"), [
    ((WEB,), "", 3),
    ((WEB,), "web", 3),
    ((WEB, ADMIN), "admin", 4),
    ((KEPT, WEB), "", 3),
    ((), "", "why there is none"),
    ((KEPT,), "", "why there is none"),
    ((WEB, ADMIN), "", "2 were passed; say which by systemd:NAME, of admin, web"),
    ((WEB,), "app", "none of the 1 passed is called app; there is web"),
    ((WEB, ADMIN), "app", "none of the 2 passed is called app; there is admin, web"),
    ((WEB, WEB_AGAIN), "", TWICE),
    ((WEB, WEB_AGAIN, ADMIN), "web", TWICE),
    ((WEB, WEB_AGAIN, ADMIN), "", "3 were passed; say which by systemd:NAME, of admin, web"),
])  # fmt: skip
def test_which_socket(passed: tuple[Passed, ...], name: str, found: int | str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one of that name, or the only one; else why not. One that the manager kept for us is none that it passed."""
    monkeypatch.setattr(systemd, "_given", Given(passed, "why there is none"))
    assert systemd.find(name) == found
    if isinstance(found, int):
        assert systemd.descriptor(name) == found
    else:
        with pytest.raises(ConfigError, match=re.escape(f"could not take a socket from systemd: {found}")):
            systemd.descriptor(name)


def test_no_reason_is_a_reason_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the manager passed something, and all of it is what it kept."""
    monkeypatch.setattr(systemd, "_given", Given((KEPT,), ""))
    assert systemd.find("") == "no socket was passed"
    assert systemd.stored("here") == 5
    assert systemd.stored("there") is None


@given(st.text(max_size=400))
def test_stored_names_are_allowed(asked: str) -> None:
    """Whatever was asked for becomes a name that systemd takes."""
    name = stored_name(asked)
    assert name.isascii()
    assert name.isprintable()
    assert ":" not in name
    assert len(name) <= 255


# What is told.


def test_ready_when_enough_are() -> None:
    """READY=1 comes with the last of min_children, once."""
    notices = Notices(None, 0.0)
    told = [words(notices.turn(facts(ready=ready), now)) for now, ready in enumerate([0, 1, 2, 1, 2])]
    assert told == [[], [], ["READY=1"], [], []]


def test_whole_life() -> None:
    """READY, RELOADING with the time, READY, STOPPING; each state in one message with a status."""
    notices = Notices(None, 0.0)
    messages = notices.turn(BOOTING, 0.0)
    messages += notices.turn(facts(), 1.0)
    messages += notices.turn(facts(reloading=True), 2.5)
    messages += notices.turn(facts(), 3.0)
    messages += notices.turn(facts(Phase.DRAINING), 4.0)
    messages += notices.turn(facts(Phase.STOPPED, ready=0), 5.0)
    extend = "EXTEND_TIMEOUT_USEC=15000000"
    assert messages == [
        f"{extend}\nSTATUS=starting: 0 of 2 workers, 2 starting",
        "READY=1\nSTATUS=serving: 2 workers",
        f"RELOADING=1\nMONOTONIC_USEC=2500000\n{extend}\nSTATUS=reloading: 2 workers",
        "READY=1\nSTATUS=serving: 2 workers",
        f"STOPPING=1\n{extend}\nSTATUS=draining: 2 workers left",
        "STATUS=stopped",
    ]


def test_new_image_does_not_announce_the_reload_again() -> None:
    """After the exec the manager knows of the reload: what it waits for is READY."""
    notices = Notices(None, 0.0, resumed=True)
    assert words(notices.turn(facts(reloading=True), 0.0)) == []
    assert words(notices.turn(facts(), 1.0)) == ["READY=1"]


def test_degraded_is_ready_and_says_why() -> None:
    """A new image whose program failed serves on with the old generation: READY, and the reason in the status."""
    notices = Notices(None, 0.0, resumed=True)
    (message,) = notices.turn(facts(reloading=True, degraded="the program failed\nTraceback"), 0.0)
    assert message == "READY=1\nSTATUS=degraded: the program failed; reloading: 2 workers"


def test_watchdog_is_fed_twice_as_often_as_it_looks() -> None:
    """WATCHDOG=1 comes every half of WATCHDOG_USEC, and `next_at` says when."""
    notices = Notices(2.0, 0.0)
    now, fed = 0.0, []
    while now < 10:
        if "WATCHDOG=1" in notices.turn(facts(), now):
            fed.append(now)
        assert notices.next_at <= now + 1.0
        now = max(now + 0.001, notices.next_at)
    assert fed == [float(second) for second in range(10)]


def test_watchdog_waits_for_a_new_image() -> None:
    """During a reload the watchdog is told to be patient for boot_timeout more, and then no longer."""
    notices = Notices(2.0, 0.0)
    notices.turn(facts(), 0.0)
    assert "WATCHDOG_USEC=62000000" in notices.turn(facts(reloading=True), 1.0)[0]
    assert "WATCHDOG_USEC=2000000" in notices.turn(facts(), 2.0)[0]


@pytest.mark.parametrize(
    ("known", "until"),
    [(BOOTING, 60.0), (facts(reloading=True), 300.0), (facts(Phase.DRAINING), 300.0), (facts(Phase.STOPPING), 300.0),
     (facts(), 0.0), (facts(Phase.STOPPED), 0.0)],
)  # fmt: skip
def test_extension_every_five_seconds(known: NotifyFacts, until: float) -> None:
    """More time is asked for every five seconds, each time fifteen: while it boots, until boot_timeout and no longer,
    and while it reloads or ends, however long that takes. `next_at` says when."""
    notices = Notices(None, 0.0)
    if known is not BOOTING:
        notices.turn(facts(), 0.0)
    now, asked = 0.0, []
    while now < 300.0:
        for message in notices.turn(known, now):
            asked += [now] if "EXTEND_TIMEOUT_USEC=15000000" in message.split("\n") else []
        assert now < notices.next_at
        now = min(300.0, notices.next_at)
    assert asked == [5.0 * n for n in range(int(until / 5))]


def test_status_at_most_once_a_second() -> None:
    """A status that changes all the time is said once a second, a new state's at once; the last one is not lost."""
    notices, said = Notices(None, 0.0), []
    for tenth in range(26):
        known = facts(Phase.STARTING if tenth < 5 else Phase.RUNNING, ready=min(tenth, 2), starting=tenth)
        said += [(tenth, message) for message in notices.turn(known, tenth / 10)]
    assert [tenth for tenth, _ in said] == [0, 5, 15, 25]
    assert said[-1][1] == "STATUS=serving: 2 workers, 25 starting"
    assert notices.turn(facts(), 2.6) == []
    assert notices.next_at == 3.5
    assert notices.turn(facts(), 3.5) == ["STATUS=serving: 2 workers"]


@pytest.mark.parametrize(
    ("known", "line"),
    [
        (facts(ready=1), "serving: 1 of 2 workers"),
        (facts(ready=1, enough=1), "serving: 1 worker"),
        (facts(ready=3, starting=1, leaving=2), "serving: 3 workers, 1 starting, 2 draining"),
        (facts(Phase.DRAINING, ready=1), "draining: 1 worker left"),
        (facts(Phase.STOPPING, ready=1, leaving=1), "stopping: 2 workers left"),
        (facts(Phase.STOPPED), "stopped"),
    ],
)
def test_status(known: NotifyFacts, line: str) -> None:
    """The status is a line that a person understands."""
    assert status_line(known) == line


def test_a_manager_that_is_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it takes nothing everything waits, and is tried again soon: the listener, READY and what is so in the end;
    what was so meanwhile is left out."""
    known = facts()
    with Manager(tmp_path) as manager, socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setattr(systemd, "_given", take(manager.env(watchdog_s=30), os.getpid()))
        manager.fill()
        notifier = Notifier(lambda: known, resumed=False, listeners=[(listener.fileno(), "here")])
        for number in range(100):
            known = facts(ready=2 + number % 2, reloading=number % 2 == 1)
            assert notifier.turn(7.0) == 7.1
        manager.look()
        assert manager.messages == []
        for _ in range(2):
            notifier.turn(7.0)
            manager.look()
        notifier.forget()
        assert manager.messages[0] == "FDSTORE=1\nFDNAME=prefork here"
        assert [*manager.kept] == ["prefork here"]
        assert words(manager.messages) == ["READY=1", "RELOADING=1"]
        assert "READY=1\nSTATUS=reloading: 3 workers" in manager.messages


OURS, OTHER = (9, "STREAM 'here' 1"), (9, "STREAM 'there' 1")
STORE = ("FDSTORE=1\nFDNAME=prefork STREAM 'here' 1", 9)


@pytest.mark.parametrize(("before", "listeners", "unsent"), [
    ([], [], []),
    ([], [OURS], [STORE]),
    ([OURS], [OURS], [STORE]),
    ([(8, OURS[1])], [OURS], [(f"FDSTOREREMOVE=1\nFDNAME=prefork {OURS[1]}", None), STORE]),
    ([OTHER], [OURS], [(f"FDSTOREREMOVE=1\nFDNAME=prefork {OTHER[1]}", None), STORE]),
    ([OTHER], [], [(f"FDSTOREREMOVE=1\nFDNAME=prefork {OTHER[1]}", None)]),
    ([], [OURS, OTHER], [STORE, ("FDSTORE=1\nFDNAME=prefork STREAM 'there' 1", 9)]),
])  # fmt: skip
def test_what_the_manager_is_to_keep(
    before: list[tuple[int, str]], listeners: list[tuple[int, str]], unsent: list[tuple[str, int | None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Our listeners, and no longer those of the previous image that are others, be it at the same address. Without a
    manager nothing is kept."""
    for notify in ("/notify", ""):
        monkeypatch.setattr(systemd, "_given", Given(notify=notify))
        notifier = Notifier(facts, resumed=False, listeners=listeners, before=before)
        assert list(notifier._unsent) == (unsent if notify else [])
        notifier.forget()
        assert notifier.turn(7.0) == float("inf")


FACTS = st.builds(
    facts, ready=st.integers(0, 3), starting=st.integers(0, 2), leaving=st.integers(0, 2), reloading=st.booleans(),
    degraded=st.sampled_from(["", "why"]),
)  # fmt: skip


@given(
    st.lists(st.tuples(st.floats(0, 20), FACTS), max_size=30),
    st.lists(st.sampled_from(PHASES), min_size=31, max_size=31).map(lambda found: sorted(found, key=PHASES.index)),
    st.sampled_from([None, 0.5, 30.0]),
    st.booleans(),
)
def test_order_of_every_life(
    steps: list[tuple[float, NotifyFacts]], phases: list[Phase], watchdog_s: float | None, resumed: bool
) -> None:
    """Whatever happens: no state twice in a row, RELOADING only between two READY, nothing after STOPPING; every
    message is text without an empty line; `next_at` never stands still in the past."""
    notices, now, told = Notices(watchdog_s, 0.0, resumed=resumed), 0.0, ["RELOADING=1"] if resumed else []
    for (later, known), phase in zip(steps, phases, strict=False):
        now += later
        known = facts(phase, known.ready, known.starting, known.leaving, reloading=known.reloading,
                      degraded=known.degraded)  # fmt: skip
        messages = notices.turn(known, now)
        told += words(messages)
        assert all(message and "" not in message.split("\n") for message in messages)
        assert notices.next_at > now
    assert all(first != second for first, second in pairwise(told))
    assert "STOPPING=1" not in told[:-1]
    assert not told or told[0] in (["RELOADING=1"] if resumed else ["READY=1", "STOPPING=1"])
