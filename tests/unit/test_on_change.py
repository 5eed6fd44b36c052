"""What `reload_on_change` takes for a change: the files of the program, looked at now and then."""

import os
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from prefork.reload import on_change
from prefork.reload.on_change import Changes

# What is documented, in seconds where the name says so: written out, so that a number cannot change unseen.
LOOK_EVERY_S = 0.5
SETTLE_S = 0.1

Reloads = list[float]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a module that is loaded, and one beside it that is not."""
    (tmp_path / "loaded_here.py").write_text("A = 1\n")
    (tmp_path / "beside.py").write_text("B = 1\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    import_module("loaded_here")
    yield tmp_path
    del sys.modules["loaded_here"]


class Time:
    """A clock for turns, and what they asked for."""

    def __init__(self) -> None:
        self.now = 100.0
        self.asked: Reloads = []

    def pass_until_settled(self, changes: Changes) -> int:
        """Three turns, each as soon as it is wanted; how often a reload was asked for."""
        before = len(self.asked)
        for _ in range(3):
            self.now = max(changes.turn(self.now), self.now) + 0.001
        return len(self.asked) - before

    def reload(self) -> None:
        self.asked.append(self.now)


def edit(path: Path, text: str) -> None:
    """By rename, as most editors do: another inode, whatever the clock's grain."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)


def test_a_change_is_one_reload(program: Path) -> None:
    """Nothing is asked for while nothing changes, and one reload for each change; half a second is between looks."""
    time = Time()
    changes = Changes(time.reload)
    assert time.pass_until_settled(changes) == 0
    edit(program / "loaded_here.py", "A = 2\n")
    assert time.pass_until_settled(changes) == 1
    assert time.pass_until_settled(changes) == 0
    assert changes.turn(time.now) <= time.now + LOOK_EVERY_S


def test_waits_until_all_is_written(program: Path) -> None:
    """While files go on changing from look to look nothing is asked for."""
    time = Time()
    changes = Changes(time.reload)
    changes.turn(time.now)
    time.now += LOOK_EVERY_S
    for text in ("A = 1\n", "A = 1 #\n", "A = 1 # whole\n"):
        edit(program / "loaded_here.py", text)
        assert changes.turn(time.now) == pytest.approx(time.now + SETTLE_S)
        assert time.asked == []
        time.now += SETTLE_S
    changes.turn(time.now)
    assert len(time.asked) == 1


def test_a_change_that_is_taken_back(program: Path) -> None:
    """What is again as it was is no change; the same change later has to settle like any other."""
    time = Time()
    changes = Changes(time.reload)
    loaded, kept = program / "loaded_here.py", program / "kept"
    os.link(loaded, kept)
    edit(loaded, "A = 2\n")
    os.link(loaded, program / "edited")
    assert changes.turn(time.now) == pytest.approx(time.now + SETTLE_S)
    os.replace(kept, loaded)
    time.now += SETTLE_S
    assert changes.turn(time.now) == pytest.approx(time.now + LOOK_EVERY_S)
    os.replace(program / "edited", loaded)
    time.now += LOOK_EVERY_S
    assert changes.turn(time.now) == pytest.approx(time.now + SETTLE_S)
    assert time.asked == []
    assert time.pass_until_settled(changes) == 1


def test_half_a_second_is_between_looks(program: Path) -> None:
    """Also after a reload; in between no file is asked for."""
    time = Time()
    changes = Changes(time.reload)
    assert changes.turn(time.now) == time.now + LOOK_EVERY_S
    edit(program / "loaded_here.py", "A = 2\n")
    time.now += LOOK_EVERY_S / 2
    assert changes.turn(time.now) == time.now + LOOK_EVERY_S / 2
    time.now += LOOK_EVERY_S / 2
    assert changes.turn(time.now) == time.now + SETTLE_S
    time.now += SETTLE_S
    assert changes.turn(time.now) == time.now, "the reload begins at once"
    edit(program / "loaded_here.py", "A = 3\n")
    assert changes.turn(time.now) == time.now + LOOK_EVERY_S


def test_what_was_seen_is_handed_on_whole(program: Path) -> None:
    """Time, size and inode of each, as the next image reads them."""
    changes = Changes(lambda: None)
    path = str(program / "loaded_here.py")
    found = os.stat(path)
    assert changes.pack()[path] == [found.st_mtime_ns, found.st_size, found.st_ino]
    assert Changes(lambda: None, before=changes.pack()).pack() == changes.pack()
    other = {path: [1, 2, 3]}
    assert Changes(lambda: None, before=other).pack()[path] == [1, 2, 3]


@pytest.mark.parametrize("what", ["beside", "new", "gone", "named", "touched"])
def test_what_is_a_change(what: str, program: Path) -> None:
    """A module beside the program's, a new one, one that is gone, a file that was named, and a new time alone."""
    named = program / "s.toml"
    named.write_text("[prefork]\n")
    time = Time()
    changes = Changes(time.reload, [str(named)])
    assert time.pass_until_settled(changes) == 0
    match what:
        case "beside":
            edit(program / "beside.py", "B = 2\n")
        case "new":
            (program / "another.py").write_text("C = 1\n")
        case "gone":
            (program / "loaded_here.py").unlink()
        case "named":
            edit(named, "[prefork]\nmax_children = 2\n")
        case "touched":
            os.utime(program / "loaded_here.py", (1, 1))
    assert time.pass_until_settled(changes) == 1
    assert (str(program / "loaded_here.py") in changes.pack()) == (what != "gone")


def test_other_files_are_none(program: Path) -> None:
    """What is no module and was not named may change; so may what Python writes."""
    time = Time()
    changes = Changes(time.reload)
    (program / "data.txt").write_text("x")
    (program / "__pycache__").mkdir(exist_ok=True)
    (program / "__pycache__" / "loaded_here.cpython-311.pyc").write_bytes(b"x")
    assert time.pass_until_settled(changes) == 0


def test_what_comes_during_a_reload_is_one_more(program: Path) -> None:
    """The next image begins with what this one had seen when it asked, so that nothing between the two is missed."""
    time = Time()
    changes = Changes(time.reload)
    edit(program / "loaded_here.py", "A = 2\n")
    assert time.pass_until_settled(changes) == 1
    edit(program / "loaded_here.py", "A = 3\n")  # the rehearsal has read 2
    following = Changes(time.reload, before=changes.pack())
    assert time.pass_until_settled(following) == 1
    assert time.pass_until_settled(following) == 0


def test_how_a_file_is_named(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here, or by its whole path where it is elsewhere."""
    monkeypatch.chdir(program)
    assert on_change._shown(str(program / "a" / "b.py")) == "a/b.py"
    assert on_change._shown("/elsewhere/b.py") == "/elsewhere/b.py"
