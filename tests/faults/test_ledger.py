"""The flagship: workers are killed at random for seconds, and not one connection is unaccounted for.

    connections the clients opened = accepted + those a worker died holding between accept and its count
    failed at the clients          = lost − those already answered + the same remainder

TEST_PREFORK_LEDGER_S=60 makes the storms longer.
"""

import itertools
import os
import random
import threading
from collections import Counter
from pathlib import Path

import pytest

from tests.support.clients.connections import Connection, Load, connect
from tests.support.clients.scraping import Scraper, total
from tests.support.programs.service import Service, script
from tests.support.programs.storm import Storm
from tests.support.tools.figures import figure, ms

SECONDS = float(os.environ.get("TEST_PREFORK_LEDGER_S", "8"))
REFILL_S = 0.2
WORKERS, THREADS = 4, 4
LABEL_SETS = 1000

BRIEF = """
class Handler(Who):
    def do_pid(self):
        time.sleep(0.002)
"""

COUNTING = """
import prometheus_client
ASKED = prometheus_client.Counter("asked", "by what was asked", ["what"])

class Handler(Who):
    def do_count(self, what):
        ASKED.labels(what).inc()
"""


@pytest.mark.parametrize(("bases", "lanes", "clients"), [
    pytest.param("PreForkingTCPServer", 1, 8, marks=pytest.mark.quick_faults),
    ("PreForkingMixIn, ThreadingTCPServer", THREADS, 16),
])  # fmt: skip
def test_ledger(bases: str, lanes: int, clients: int, tmp_path: Path, rng: random.Random) -> None:
    """Whoever is killed whenever: what the clients opened and what failed there is in the books, to the unit; no total
    falls between two scrapes; the pool is whole at once."""
    source = script(BRIEF, bases=bases, max_children=WORKERS, max_threads=lanes, metrics_address=str(tmp_path / "m"))
    with Service(tmp_path, source) as service:
        service.wait_ready(WORKERS)
        storm = Storm(service, rng)
        with Scraper(str(tmp_path / "m")) as scraper:
            with Load(service.address, clients, processes=2) as load:
                load.wait_answered()
                storm.rage(SECONDS)
                refill = storm.wait_full(WORKERS)
            statistics = service.settled()
        scraped = scraper.look()
    tally = load.tally
    held = tally.opened - statistics["accepted"]
    answered = tally.answered - statistics["completed"]
    figure(f"{bases}: kills, connections", f"{storm.kills}, {tally.opened}")
    figure(f"{bases}: lost, failed at the clients", f"{statistics['lost']}, {tally.failures} {dict(tally.failed)}")
    figure(f"{bases}: died between accept and its count; after the answer", f"{held}; {answered}", storm.kills)
    figure(f"{bases}: falls in {scraper.scrapes} scrapes, the slowest {ms(scraper.slowest)}", len(scraper.falls), 0)
    figure(f"{bases}: full again after the last kill", ms(refill), ms(REFILL_S))
    # Each death can have hidden one accept, and for each lane one answer; nothing else may be missing. Few do: of
    # these deaths 0 to 2 % came between accept and its count.
    assert 0 <= held <= 5 + storm.kills // 20
    assert 0 <= answered <= min(storm.kills * lanes, statistics["lost"])
    assert tally.failures == statistics["lost"] - answered + held
    assert statistics["accepted"] == statistics["completed"] + statistics["lost"]
    assert statistics["exits"]["killed"] == storm.kills > 10 * SECONDS
    assert statistics["lost"] > 0
    assert statistics["words_rejected"] == 0
    # The exporter says what the master says.
    assert total(scraped, "prefork_connections_accepted_total") == statistics["accepted"]
    of = {name: value for name, value in scraped.items() if "outcome=" in name}
    outcomes = {name.split('outcome="')[1].split('"')[0]: value for name, value in of.items()}
    assert outcomes == {"ok": statistics["completed"], "error": 0, "timeout": 0, "lost": statistics["lost"]}
    assert scraped['prefork_worker_exits_total{reason="killed"}'] == storm.kills
    assert scraped['prefork_worker_signal_deaths_total{signal="SIGKILL"}'] == storm.kills
    assert scraper.scrapes > SECONDS
    assert scraper.falls == []
    assert scraper.failed == []
    assert refill <= REFILL_S


class Asker(threading.Thread):
    """Asks for one label set after the other, over ever new connections, and keeps the truth."""

    def __init__(self, service: Service, first: int) -> None:
        super().__init__(name="asker")
        self.sent: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.failed = 0
        self.done = threading.Event()
        self._address, self._numbers = service.address, itertools.count(first)

    def ask_for_all(self) -> None:
        """Every label set once, before anybody dies."""
        with connect(self._address) as connection:
            while self.sent.total() < LABEL_SETS:
                self._ask(connection)

    def run(self) -> None:
        while not self.done.is_set():
            try:
                with connect(self._address) as connection:
                    self._ask(connection)
            except OSError:
                self.failed += 1

    def _ask(self, connection: Connection) -> None:
        for _ in range(100):
            what = str(next(self._numbers) % LABEL_SETS)
            self.sent[what] += 1
            connection.send(b"count %s" % what.encode())
            if connection.answer_or_end() is None:
                raise ConnectionResetError
            self.answered[what] += 1


def test_ledger_of_the_programs_own_metrics(tmp_path: Path, rng: random.Random) -> None:
    """1,000 label sets of the program's own under a kill storm: no total falls, and each differs from the truth by at
    most the increments that were in flight when a worker died."""
    source = script(COUNTING, max_children=WORKERS, metrics_address=str(tmp_path / "m"))
    with Service(tmp_path, source) as service:
        service.wait_ready(WORKERS)
        askers = [Asker(service, LABEL_SETS // WORKERS * number) for number in range(WORKERS)]
        askers[0].ask_for_all()
        storm = Storm(service, rng)
        with Scraper(str(tmp_path / "m")) as scraper:
            for asker in askers:
                asker.start()
            try:
                storm.rage(SECONDS / 2)
            finally:
                for asker in askers:
                    asker.done.set()
                    asker.join()
            service.settled()
        found = scraper.look()
    sent = sum((asker.sent for asker in askers), Counter())
    answered = sum((asker.answered for asker in askers), Counter())
    counted = {name.split('"')[1]: value for name, value in found.items() if name.startswith("asked_total{")}
    in_flight = sum(asker.failed for asker in askers)
    figure("kills; increments in flight", f"{storm.kills}; {in_flight}")
    figure("increments counted; answered", f"{sum(counted.values()):.0f}; {answered.total()}")
    figure(f"falls in {scraper.scrapes} scrapes, the slowest {ms(scraper.slowest)}", len(scraper.falls), 0)
    assert len(counted) == LABEL_SETS
    assert sum(counted.values()) > LABEL_SETS
    assert all(answered[what] <= counted.get(what, 0) <= sent[what] for what in sent)
    assert counted.keys() <= sent.keys()
    assert sent.total() - answered.total() <= in_flight
    assert found["prefork_application_series_dropped_total"] == 0
    assert storm.kills > 10
    assert scraper.falls == []
    assert scraper.failed == []
