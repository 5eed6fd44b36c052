"""Commands in each other's way: two reloads, the end during a reload, a reload during the end, at swept moments."""

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.programs.releases import Released, numbered
from tests.support.programs.service import HUNG
from tests.support.tools.figures import figure, ms

WORKERS = 2
GRACEFUL_S = 5.0
SLACK_S = 1.0
# Milliseconds after the HUP: its arrival by small steps, then rehearsal, exec and new workers by larger ones.
MOMENTS = (0, 1, 3, 7, 13, 25, 50, 90, 130, 150, 170, 190, 210, 240, 270, 300, 350, 450)


def started(tmp_path: Path) -> Released:
    service = Released(tmp_path, max_children=WORKERS, graceful_timeout=GRACEFUL_S)
    service.allow("reload failed: the service is about to end")  # where its end comes in the middle of one
    service.wait_ready(WORKERS)
    service.release(numbered(2))
    return service


def wait_answer(service: Released, release: str) -> None:
    """Until a new connection is answered by this release."""
    deadline = time.monotonic() + HUNG
    while service.answering() != release:
        assert time.monotonic() < deadline, f"hung: {release} does not answer"


def wait_ended(service: Released, sent_at: float) -> float:
    """It ends as it should, by the command that was sent then; how long that took."""
    assert service.wait_exit() == 0
    took = time.monotonic() - sent_at
    assert took < GRACEFUL_S + SLACK_S
    service.wait_gone()
    assert "Traceback" not in service.log
    return took


def generations_at_once(service: Released) -> int:
    """How many generations of workers have lived at the same time at most, by what the workers told."""
    born: dict[int, int] = {}
    image = most = 0
    for fact in service.facts:
        if fact["event"] == "listening":
            image += 1
        elif fact["event"] == "worker_started":
            born[fact["pid"]] = image
        elif fact["event"] == "worker_stopping":
            del born[fact["pid"]]
        most = max(most, len(set(born.values())))
    return most


@pytest.mark.quick_faults
def test_a_third_generation_waits_for_the_first(tmp_path: Path) -> None:
    """While a worker of the first generation has a request, a second reload stays asked for, and is made after."""
    with started(tmp_path) as service:
        held = service.hold()
        service.signal(signal.SIGHUP)
        service.wait_each("listening", 2)  # the new image; its workers are still to come
        service.release(numbered(3))
        service.signal(signal.SIGHUP)
        service.wait_reloads(ok=1)
        wait_answer(service, "r2")
        assert service.statistics()["generation"] == 2
        held.close()
        service.wait_reloads(ok=2)
        wait_answer(service, "r3")
        assert generations_at_once(service) == 2


@pytest.mark.quick_faults
@pytest.mark.parametrize("between_ms", [0, 5, 25])
def test_hups_while_a_request_is_held(between_ms: int, tmp_path: Path) -> None:
    """Ten HUPs in a row while the first generation cannot leave: it stays beside one other, until it may, and the last
    release is the one that serves."""
    with started(tmp_path) as service:
        held = service.hold()
        for number in range(2, 12):
            service.release(numbered(number))
            service.signal(signal.SIGHUP)
            time.sleep(between_ms / 1000)
        service.wait_reloads(ok=1)
        held.close()
        wait_answer(service, "r11")
        figure("generations at once", most := generations_at_once(service), 2)
        assert most == 2


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGQUIT])
def test_the_end_wins_over_a_reload(stop: int, tmp_path: Path) -> None:
    """TERM or QUIT 0 to 450 ms after a HUP: the service ends with 0, in time, and nobody is left."""
    longest = 0.0
    for delay_ms in MOMENTS[stop == signal.SIGQUIT :: 2]:
        with started(tmp_path) as service:
            service.signal(signal.SIGHUP)
            time.sleep(delay_ms / 1000)
            longest = max(longest, wait_ended(service, service.signal(stop)))
    name = signal.Signals(stop).name
    figure(f"{name} during a reload: ended within", ms(longest), ms(GRACEFUL_S + SLACK_S))


@pytest.mark.quick_faults
@pytest.mark.parametrize("event", ["listening", "worker_started", "worker_stopping"])
def test_the_end_wins_at_each_step_after_the_exec(event: str, tmp_path: Path) -> None:
    """TERM as soon as the new image serves, as its first worker is ready, as the first old one leaves."""
    with started(tmp_path) as service:
        after = service.mark()
        service.signal(signal.SIGHUP)
        service.wait(event, after=after)
        wait_ended(service, service.signal(signal.SIGTERM))
        exits: dict[str, Any] = service.wait("ended", after=after)["exits"]
    assert set(exits) <= {"drained", "replaced"}
    assert sum(exits.values()) <= 2 * WORKERS


@pytest.mark.quick_faults
def test_a_reload_during_a_drain_is_none(tmp_path: Path) -> None:
    """HUP and TTIN 0 to 25 ms after TERM, with a request in hand: nothing is started, and the end comes with it."""
    for delay_ms in (0, 1, 3, 7, 12, 25):
        with started(tmp_path) as service:
            held = service.hold()
            after = service.mark()
            service.signal(signal.SIGTERM)
            time.sleep(delay_ms / 1000)
            service.signal(signal.SIGHUP)
            service.signal(signal.SIGTTIN)
            assert held.ask(b"release") == b"r1"
            held.close()
            wait_ended(service, time.monotonic())
            exits = service.wait("ended")["exits"]
            assert not [fact for fact in service.facts[after:] if fact["event"] in ("listening", "worker_started")]
        assert exits == {"drained": WORKERS}
