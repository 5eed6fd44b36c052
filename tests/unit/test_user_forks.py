"""The clean-up in a process that the program forks: which of it runs, and what happens to shared memory there."""

import mmap
import os
from collections.abc import Iterator

import pytest

from prefork.workers import user_forks
from prefork.workers.user_forks import NEXT, always_on_fork_by_user, make_private, on_fork_by_user, write_privately

PAGE = mmap.PAGESIZE


@pytest.fixture(autouse=True)
def undone(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What the hook has run. No hook of the process is touched."""
    done: list[str] = []
    monkeypatch.setattr(user_forks, "_always", [])
    always_on_fork_by_user(lambda: done.append("always"))
    on_fork_by_user(lambda: done.append("undo"))
    yield done
    on_fork_by_user(None)


def test_a_fork_of_the_programs(undone: list[str]) -> None:
    """All of it runs, once: a process that the new one forks has nothing of ours."""
    user_forks._after_fork()
    user_forks._after_fork()
    assert undone == ["undo", "always", "always"]


def test_without_a_pool(undone: list[str]) -> None:
    """Only what is there for any server."""
    on_fork_by_user(None)
    user_forks._after_fork()
    assert undone == ["always"]


def test_a_fork_of_ours(undone: list[str]) -> None:
    """Nothing runs in our own child; what that forks is the program's again."""
    NEXT.undo, NEXT.ours = None, True
    user_forks._after_fork()
    assert undone == []
    user_forks._after_fork()
    assert undone == ["always"]


class Shared:
    """Four pages of a file, mapped twice: what is written in one is seen in the other."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("shared")
        os.truncate(self.fd, 4 * PAGE)
        self.ours, self.others = mmap.mmap(self.fd, 4 * PAGE), mmap.mmap(self.fd, 4 * PAGE)
        self.ours[:] = b"a" * 4 * PAGE

    def seen(self) -> list[int]:
        """The pages where a letter that we write is seen by the others."""
        found = []
        for page in range(4):
            self.ours[page * PAGE + 9] = ord("b")
            if self.others[page * PAGE + 9] == ord("b"):
                found.append(page)
        return found

    def close(self) -> None:
        self.ours.close()
        self.others.close()
        os.close(self.fd)


@pytest.fixture
def shared() -> Iterator[Shared]:
    shared = Shared()
    yield shared
    shared.close()


@pytest.mark.parametrize(("size", "left"), [
    (1, [1, 2, 3]), (PAGE, [1, 2, 3]), (PAGE + 1, [2, 3]), (4 * PAGE, []), (9 * PAGE, []),
])  # fmt: skip
def test_a_private_copy(size: int, left: list[int], shared: Shared) -> None:
    """Whole pages, with what stood there; the rest stays shared."""
    make_private(shared.ours, size)
    assert shared.ours[:] == b"a" * 4 * PAGE
    assert shared.seen() == left
    shared.others[2 * PAGE + 1] = ord("c")
    assert shared.ours[2 * PAGE + 1] == ord("c" if 2 in left else "a")


def test_copy_on_write(shared: Shared) -> None:
    """What the others write is seen until we write there; what we write is not."""
    write_privately(shared.ours, shared.fd)
    shared.others[PAGE] = ord("c")
    assert shared.ours[PAGE] == ord("c")
    assert shared.seen() == []


def test_better_no_child(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose memory could not be separated ends, before it writes there."""
    monkeypatch.setattr(os, "_exit", lambda status: (_ for _ in ()).throw(SystemExit(status)))
    with pytest.raises(SystemExit, match="1"):
        write_privately(shared.ours, 1 << 20)  # there is no such descriptor
