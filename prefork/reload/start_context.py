"""The start context of this process, with which the same program can be started again: its command line, environment
and directory, read when prefork is imported.

Runs in the process that becomes the master. Owns values only. What the program has changed before that import is not
taken for how it was started: the environment is read from the kernel, and the directory of a script is the one in which
its path leads to it. Must be made early: process titles are written over the memory that /proc/self/environ shows.
"""

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from .. import systemd
from .attributes import Attributes

ENTRY = os.path.join(os.path.dirname(os.path.dirname(__file__)), "takeover.py")  # where every new image begins
WITH_ARGUMENT = {"-W", "-X", "--check-hash-based-pycs"}  # the interpreter options that take an argument; python(1)


class StartContext(NamedTuple):
    """The way this process was started. `program` is the command line after the interpreter's own options."""

    executable: str
    flags: tuple[str, ...]
    program: tuple[str, ...]
    environment: dict[str, str]
    directory: str
    pid: int = os.getpid()
    children: frozenset[int] = frozenset()  # of this process, before the program has started any
    attributes: Attributes = Attributes.read()

    def refusal(self) -> str | None:
        """Return why this program cannot be started again; None if it can."""
        if os.getpid() != self.pid or _is_of_multiprocessing():
            return (
                "the program has started this process itself (os.fork, multiprocessing), and the command line is that "
                "of its first process"
            )
        if not self.program or self.program[0] == "-":
            interactive = sys.flags.interactive or hasattr(sys, "ps1") or (sys.stdin is not None and sys.stdin.isatty())
            return "it is an interactive interpreter" if interactive else "its program was read from stdin"
        return None

    def command(self, fd: int, directory: str) -> list[str]:
        """Return the command line of a new image in `directory`, which reads its record from descriptor `fd`."""
        return [self.executable, *self.flags, ENTRY, str(fd), *self._program_from(directory)]

    def _program_from(self, directory: str) -> tuple[str, ...]:
        """Return the program to run in `directory`.

        A relative path is kept if it exists in `directory`; else it is taken from the directory we were started in.
        """
        path = self.program[0]
        if path in ("-m", "-c") or directory == self.directory or os.path.exists(os.path.join(directory, path)):
            return self.program
        return (os.path.join(self.directory, path), *self.program[1:])


def split(argv: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Split a command line into the interpreter's options, and the program with its arguments.

    A program begins with a path, with `-m` and a module, or with `-c` and a text. In a new image it follows the path
    of takeover.py and a descriptor, which are left out.
    """
    index = 1
    while index < len(argv) and argv[index].startswith("-") and argv[index] != "-":
        option = argv[index]
        if option == "--":
            index += 1
            break
        letter = _program_letter(option)
        if letter is not None:
            before, kind, behind = letter
            flags = (*argv[1:index], *([f"-{before}"] if before else []))
            return flags, (f"-{kind}", *([behind] if behind else []), *argv[index + 1 :])
        index += 2 if option in WITH_ARGUMENT or (option[-1] in "WX" and not option.startswith("--")) else 1
    program = tuple(argv[index:])
    if program and program[0] == ENTRY:
        program = program[2:]
    return tuple(argv[1:index]), program


def _program_letter(option: str) -> tuple[str, str, str] | None:
    """Split a cluster of short options at the `m` or `c` in it: the options before, the letter, the text after it.

    None if there is neither.
    """
    if option.startswith("--"):
        return None
    for position, letter in enumerate(option[1:], 1):
        if letter in "mc":
            return option[1:position], letter, option[position + 1 :]
        if letter in "WX":
            return None  # the rest is its argument
    return None


def children() -> set[int]:
    """Return the pids of the children of this process; none where the kernel does not tell (proc_pid_children(5))."""
    found: set[int] = set()
    with contextlib.suppress(OSError):
        for task in os.listdir("/proc/self/task"):
            # Not there: a thread that has just ended.
            with contextlib.suppress(OSError), open(f"/proc/self/task/{task}/children") as file:
                found.update(map(int, file.read().split()))
    return found


def _is_of_multiprocessing() -> bool:
    """Return whether this is a process of the program's multiprocessing, by whatever method it was started."""
    process = sys.modules.get("multiprocessing.process")
    return process is not None and process.parent_process() is not None


def started_with(content: bytes, otherwise: Mapping[str, str]) -> dict[str, str]:
    """Return the environment in the `content` of /proc/self/environ; `otherwise` if a title was written over it.

    Of a name that stands there twice the first counts, as it does for the C library and for os.environ.
    """
    *entries, rest = content.split(b"\0")
    if rest or not all(b"=" in entry[1:] for entry in entries):
        return dict(otherwise)
    found: dict[str, str] = {}
    for entry in map(os.fsdecode, entries):
        name, _, value = entry.partition("=")
        found.setdefault(name, value)
    return found


def _environment() -> dict[str, str]:
    try:
        with open("/proc/self/environ", "rb") as file:
            return started_with(file.read(), os.environ)
    except OSError:  # there is no /proc, or this process may not read its own
        return dict(os.environ)


def _executable() -> str:
    """Return the path of the interpreter; where argv[0] leads nowhere (`exec -a NAME python3`), the kernel knows it."""
    if sys.executable and os.path.exists(sys.executable):
        return sys.executable
    try:
        return os.readlink("/proc/self/exe")
    except OSError:
        return sys.executable


def started_in(environment: Mapping[str, str], program: Sequence[str] = (), file: str = "") -> str:
    """Return the working directory at the start, by its name in $PWD if that is the same directory, so that a release
    symlink is kept; else by its real path.

    `file` is the absolute path of the `program` that runs: it tells where we were, if we are elsewhere by now. Raises
    OSError if the working directory is removed.
    """
    here = os.getcwd()
    path = program[0].removeprefix("./") if program else ""
    if path and file.endswith(os.sep + path) and os.path.join(here, path) != file:
        here = file.removesuffix(path)
    named = environment.get("PWD", "")
    try:
        return named if named.startswith("/") and os.path.samefile(named, here) else here
    except OSError:
        return here


def _start_context() -> StartContext:
    flags, program = split(sys.orig_argv)
    environment = _environment()
    try:
        directory = started_in(environment, program, str(getattr(sys.modules["__main__"], "__file__", "")))
    except OSError:  # the working directory was removed
        directory = "/"
    systemd.note_sockets(environment)
    return StartContext(
        _executable(), flags, program, environment, directory, children=frozenset(children())
    )  # fmt: skip


START = _start_context()
