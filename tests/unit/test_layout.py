"""Where each number stands in shared memory. Two images of a master read the same memory, before and after a reload
that upgrades prefork: what has moved there needs another LAYOUT_VERSION, and what is new stands in free room."""

from types import ModuleType
from typing import Any

import pytest

from prefork.metrics import board, companions, scoreboard
from prefork.metrics.application import region
from prefork.metrics.board import BOOT, LOOP_DELAY, Word
from prefork.metrics.facts import AcceptError, CloseReason, ControlCommand, ExitReason
from prefork.metrics.scoreboard import COUNTS, DURATION, LAYOUT_VERSION, QUEUE_WAIT

WORDS = {
    "SEQUENCE": 0, "VERSION": 1, "ROWS_USED": 2, "SERVING": 3, "GENERATION": 4, "STARTED_AT_NS": 5, "TURNED_NS": 6,
    "MIN_CHILDREN": 7, "MAX_CHILDREN": 8, "BACKING_OFF": 9, "SPAWNED": 14, "LOST": 15,
    "TIMED_OUT": 16, "WORDS_REJECTED": 17, "SATURATED_NS": 18, "CPU_USER_NS": 20, "CPU_SYSTEM_NS": 21,
    "LOG_DROPPED": 22, "SERIALS_USED": 23, "RELOADS_OK": 24, "RELOADS_FAILED": 25, "LAST_RELOAD_OK": 26,
    "LAST_RELOAD_AT_NS": 27,
    "LOGS_COUNTED": 28, "CONTROL_OPEN": 29, "DATAGRAMS_TRUNCATED": 31, "LANES_DEAD": 32,
}  # fmt: skip
BOARD = {
    "EXITS": 87, "ACCEPT_ERRORS_DEAD": 111, "SIGNAL_DEATHS": 116, "SIGNALS": 65, "FORK_FAILURES": 181,
    "CONTROL_REQUESTS": 214, "CONTROL_COMMANDS": 16, "OF_LISTENERS": 262, "LISTENER_WORDS": 60,
    "LISTENER_LOST": 55, "LISTENER_TIMED_OUT": 56, "QUEUE_LENGTH_MAX": 57, "TLS_EXPIRES_AT_S": 58,
    "KEEPS": 59,
    "LIVE_TABLE": 1222, "ROWS": 2048, "ROW_WORDS": 3,
    "BOARD_WORDS": 7366, "BOARD_BYTES": 58928 + (4 << 20),
}  # fmt: skip
SLOT = {
    "VERSION": 0, "LANES": 1, "LISTENERS_MAX": 16, "FIRST_LISTENER": 1,
    "READY": 2, "DUE": 3, "LEAVING": 4, "DRAIN_ASKED": 5, "PRIVATE_MEMORY": 6,
    "OPEN_FDS": 7, "FDS_LIMIT": 8, "CPU_USER_NS": 9, "CPU_SYSTEM_NS": 10, "ACCEPT_ERRORS": 11, "LOG_DROPPED": 16,
    "TEXT_AT": 17, "CONNECTIONS_TAKEN": 18, "LOG_FOLLOWED": 20, "LOG_KEPT": 21, "REPLACE_ASKED": 19,
    "HELD_MOST": 24, "MOST_IDLE_HERE": 1 << 30, "HEADER_WORDS": 32, "LANE_WORDS": 60, "COUNT_WORDS": 55, "STATE": 0,
    "STARTED_NS": 1, "ACCEPTED": 2,
    "COMPLETED": 3, "FAILED": 4, "HANDED_OVER": 5, "REJECTED": 6, "LOST": 15, "OPENED": 47, "CLOSED": 48,
    "MOVES": 56, "TRUNCATED": 57, "IN_HAND": 58, "IDLE_HERE": 59, "AWAY": 1 << 48,
    "YES": 0x7072_6566_6F72_6B21, "IDLE": 0,
    "ACCEPTING": 1, "BUSY": 2, "MOST_GROWTH": 1 << 50, "MOST_SUM_GROWTH": 1 << 55,
    "STACKS_MAX": 262_144,
}  # fmt: skip
COMPANIONS = {
    "UP": 0, "RESTARTS": 1, "RUNS_OK": 2, "RUNS_FAILED": 3, "RUN_ENDED_AT_NS": 4, "RUN_TOOK_NS": 5, "NEXT_RUN_NS": 6,
    "RUN_STARTED_NS": 7, "RUN_LATE_NS": 8, "RUNS_TIMED_OUT": 9, "RUNS_LOST": 10, "WORDS": 11, "COMPANIONS_MAX": 64,
    "ROWS_MAX": 256,
}  # fmt: skip
REGION = {
    "FORMAT": 0x7072_6566_6F72_0001, "VERSION": 0, "USED": 1, "DROPPED": 2, "REGION_HEADER_WORDS": 4, "FAMILY": 0xFFF,
    "LENGTH_BITS": 20, "LENGTH_MASK": 0xFFFFF, "REGION_BYTES": 1 << 20, "FOLDED_BYTES": 4 << 20, "MOST": 2.0**63,
    "LEAST": 2.0**-52,
}  # fmt: skip


def test_version() -> None:
    """Numbers that have moved are of another version; then write it, and them, here."""
    assert LAYOUT_VERSION == 4


def test_words_of_the_board() -> None:
    """Each has the number that it always had, and no other has it."""
    assert {name: int(word) for name, word in Word.__members__.items()} == WORDS
    assert len(set(WORDS.values())) == len(WORDS)


MODULES: dict[str, tuple[ModuleType, dict[str, Any]]] = {
    "board": (board, BOARD), "scoreboard": (scoreboard, SLOT), "region": (region, REGION),
    "companions": (companions, COMPANIONS),
}  # fmt: skip


@pytest.mark.parametrize("where", MODULES)
def test_numbers_of_the_layout(where: str) -> None:
    """The areas of the board, the words of a slot and of a lane, and the frame of the program's own metrics."""
    module, expected = MODULES[where]
    assert {name: getattr(module, name) for name in expected} == expected


def test_histograms() -> None:
    """Their bounds, in milliseconds, and where they begin."""
    ms = {name: [bound / 1e6 for bound in histogram.bounds_ns] for name, histogram in {
        "request": DURATION, "queue": QUEUE_WAIT, "boot": BOOT, "loop": LOOP_DELAY,
    }.items()}  # fmt: skip
    assert ms == {
        "request": [0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000],
        "queue": [10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000],
        "boot": [5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000],
        "loop": [1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000],
    }
    assert [each.start for each in (DURATION, QUEUE_WAIT, BOOT, LOOP_DELAY)] == [16, 34, 186, 201]
    assert (COUNTS.start, COUNTS.stop) == (2, 57)


def test_there_is_room() -> None:
    """No area reaches into the next one."""
    words = {board.exit_word(reason) for reason in ExitReason}
    assert len(words) == len(ExitReason)
    assert min(words) >= BOARD["EXITS"]
    assert max(words) < BOARD["ACCEPT_ERRORS_DEAD"]
    assert board.exit_word(ExitReason.MASTER_DIED) == 101
    assert BOARD["ACCEPT_ERRORS_DEAD"] + len(AcceptError) <= BOARD["SIGNAL_DEATHS"]
    assert len(ControlCommand) <= BOARD["CONTROL_COMMANDS"]
    assert SLOT["ACCEPT_ERRORS"] + len(AcceptError) <= SLOT["LOG_DROPPED"]
    assert SLOT["CLOSED"] + len(CloseReason) <= SLOT["MOVES"]
    assert COUNTS.stop <= SLOT["LANE_WORDS"]
    assert SLOT["LOG_KEPT"] < SLOT["HELD_MOST"] < SLOT["HEADER_WORDS"]
