"""Stacks as they are shown: the program's frames whole, ours counted, the master's left out."""

from pathlib import Path

import prefork
from prefork.master.stacks import shortened

OURS = Path(prefork.__file__).parent


def frames(*rows: tuple[str, str]) -> list[str]:
    return [f'  File "{file}", line {number} in {name}' for number, (file, name) in enumerate(rows, 1)]


HEAD = "Thread 0x00007f3d1eb6c6c0 (most recent call first):"
HANDLER = frames(("/usr/lib/python3.11/socket.py", "readinto"), ("/srv/app.py", "handle"))
SERVING = frames(*((f"{OURS}/workers/{name}.py", name) for name in ("lanes", "threads", "loop", "bootstrap")))
MASTER = frames(
    (f"{OURS}/master/processes.py", "start"), (f"{OURS}/pool.py", "serve_forever"), ("/srv/app.py", "<module>")
)


def test_ours_are_counted() -> None:
    """Under a handler one frame of ours stays, with the number of the others; below the fork there is nothing."""
    shown = shortened("\n".join([HEAD, *HANDLER, *SERVING, *MASTER]))
    assert shown.split("\n") == [HEAD, *HANDLER, SERVING[0], "  … and 3 frames of prefork"]


def test_every_thread_has_its_own() -> None:
    """What is left out of one thread is not left out of the next, and lines between them stay."""
    one, other = [HEAD, *SERVING, *MASTER], [HEAD, *HANDLER]
    shown = shortened("\n".join([*one, "", *other, ""])).split("\n")
    assert shown == [HEAD, SERVING[0], "  … and 3 frames of prefork", "", HEAD, *HANDLER, ""]


def test_a_hook_between_ours_stays() -> None:
    """A hook of the program's is shown, with what of ours called it and what it called."""
    hook = frames(("/srv/app.py", "process_request"))
    assert shortened("\n".join([*SERVING[:2], *hook, *SERVING[:2]])).split("\n") == [*SERVING[:2], *hook, *SERVING[:2]]


def test_threads_that_wait_are_only_counted() -> None:
    """Those that have a request are shown, and so is one that is about to begin it."""
    waits = frames((f"{OURS}/workers/thread_pool.py", "_serve"), ("/usr/lib/python3.11/threading.py", "run"))
    begins = frames((f"{OURS}/workers/straight.py", "serve_one"), (f"{OURS}/workers/thread_pool.py", "_serve"))
    text = "\n\n".join("\n".join([HEAD, *rows]) for rows in (waits, HANDLER, waits, begins))
    shown = ["\n".join([HEAD, *rows]) for rows in (HANDLER, begins)]
    assert shortened(text) == "\n\n".join([*shown, "threads that wait for a request: 2\n"])


def test_what_writes_them_is_left_out() -> None:
    """The main thread runs it above what it was about to do."""
    above = frames((f"{OURS}/workers/signals.py", "_write_stacks"))
    assert shortened("\n".join([HEAD, *above, *HANDLER])).split("\n") == [HEAD, *HANDLER]


def test_the_examples_are_programs() -> None:
    """A handler of prefork.examples is shown as anybody's is; text that is no stack stays as it is."""
    example = "\n".join(frames((f"{OURS}/examples.py", "handle")) * 5)
    assert shortened(example) == example
    assert shortened("Fatal Python error\n\n  ...") == "Fatal Python error\n\n  ..."
    assert shortened("") == ""
