"""The command line up to the point where something would be bound: what it reads, and what it says when it cannot."""

import io
import logging
import os
import platform
import shutil
import socket
import socketserver
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prefork import BindError, BootError, PreForkingMixIn, PreForkingTCPServer, PreForkingUnixStreamServer, __version__
from prefork.cli.launch import fields
from prefork.cli.main import SUBCOMMAND_TABLE, SubcommandRow, main
from prefork.cli.targets import _chooses_family, _is_at
from prefork.commands import BY_VERB, Row
from prefork.logs import complain
from prefork.sockets.addresses import Address, parse_address
from prefork.workers import sinks

APP = Path(__file__).parent / "programs" / "targets_app.py"


@pytest.fixture(autouse=True)
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory to run in, with app.py; nothing of it stays imported."""
    shutil.copy(APP, tmp_path / "app.py")
    (tmp_path / "broken.py").write_text("def inner():\n    return 1 / 0\ninner()\n")
    (tmp_path / "unwell.py").write_text("import surely_not_installed\n")
    (tmp_path / "quits.py").write_text("raise SystemExit('no configuration')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield tmp_path
    for handler in [each for each in logging.getLogger().handlers if isinstance(each, sinks.SinkHandler)]:
        logging.getLogger().removeHandler(handler)  # of `prefork run`
    sinks.install(None)
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str], app: Path) -> Callable[..., str]:
    """Run a command line that must be refused with 2; what it said on stderr, after what the user's code said."""

    def run(*argv: str) -> str:
        assert main(argv) == 2
        out, err = capfd.readouterr()
        assert out == ""
        assert not list(app.glob("*.sock"))
        return err

    return run


BIND = ("--bind", "unix:never.sock")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "could not read the command line: no command is given"),
        (["rnu"], "could not read the command line: there is no command rnu; did you mean run?"),
        (["serve"], "there is no command serve\n"),
        (["run", "app:Handler", *BIND, "--colour"], "there is no option or argument --colour\n"),
        (["run", "app:Handler", *BIND, "--workers=4"], "--workers=4; here it is --max-children\n"),
        (["ctl", "kill"], "there is no verb kill\n"),
        (["ctl", "status", "--timeout", "0"], "could not set timeout to '0' (from --timeout): it must be a time in"),
        (["run", "app:Handler", *BIND, *BIND], "could not set bind to unix:never.sock (from --bind): that is taken by"),
        (
            ["run", "app:Handler", "--bind", "off", *BIND],
            "could not set bind to off (from --bind): there are addresses",
        ),
        (["run", "app:Handler", "--bind", "off"], "could not serve app:Handler: it needs an address"),
        (["run", "app:Handler", *BIND, "--metrics", ":1", "--metrics", ":2"], "--metrics is given twice, :1 and :2;"),
        (["run", "app:Handler", *BIND, "--control", "127.0.0.1:9"], "'127.0.0.1:9' (from --control): a control socket"),
        (["run", "app:Handler", *BIND, "--control", "@c"], "'@c' (from --control): a control socket is at /path"),
        (["run", "app:Handler", "--bind", "unix:@m", "--metrics", "unix:@m"], "that is taken by --bind"),
        (["run"], "could not read the command line: no target is given; say TARGET"),
        (["run", "app:Handler"], "could not serve app:Handler: it needs an address; say --bind HOST:PORT"),
        (["run", "app:Handler", *BIND, "--max-childs", "4"], "--max-childs; did you mean --max-children?"),
        (["run", "app:Handler", *BIND, "--max-child=4"], "--max-child=4; did you mean --max-children?"),
        (["run", "app:Handler", *BIND, "more"], "no option or argument more"),
        (["run", "app:Handler", *BIND, "--max-children"], "--max-children needs a value"),
        (["run", "app:Handler", *BIND, "--max-children", "-3"], "could not set max_children to '-3'"),
        (["run", "app:Handler", *BIND, "--max-children", "many"], "it must be a whole number, at least 1"),
        (["run", "app:Handler", *BIND, "--min-children", "9", "--max-children", "8"], "at most max_children, which"),
        (
            ["run", "app:Handler", *BIND, "--log-level", "loud"],
            "'loud' (from --log-level): it must be one of debug, info",
        ),
        (["run", "app:Handler", "--bind", "nowhere"], "could not read the address 'nowhere' (from --bind): it must be"),
        (
            ["run", "app:Handler", "--bind", ":9", "--metrics", "127.0.0.1:9"],
            "(from --metrics): that is taken by --bind",
        ),
        (
            ["run", "app:Handler", *BIND, "--metrics", "unix:./never.sock"],
            "unix:./never.sock (from --metrics): that is",
        ),
        (["run", "app:Handler", *BIND, "--metrics", "fd://0"], "could not read the address 'fd://0' (from --metrics):"),
        (["run", "app:Handler", *BIND, "--config", "none.toml"], "could not read none.toml: no such file or directory"),
        (["run", "app:Handler", *BIND, "--control", "unix:m", "--metrics", "unix:m"], "that is taken by --"),
        (["run", "app:Handler", *BIND, "--single", "--reload-on-change"], "with --single there is nobody who reloads"),
        (["ctl"], "could not read the command line: VERB is missing; --help says what it may be"),
        (["run", "app:Handler", "--bind"], "could not read the command line: --bind needs a value"),
        (
            ["top", "127.0.0.1:1", "--once=7"],
            "could not read the command line: --once takes no value, and '7' was given",
        ),
        (["run", "app", *BIND], "could not read the target 'app': it must be module:attribute"),
        (["run", "app.py:Handler", *BIND], "packages; leave .py out"),
        (["run", "./app.py:Handler", *BIND], "a module is named without .py and slashes"),
        (["run", "ap:Handler", *BIND], "could not import ap: there is no module ap in "),
        (["run", "app.sub:Handler", *BIND], "could not import app.sub: there is no module app.sub in "),
        (["run", "app:Handle", *BIND], "has no attribute Handle; did you mean Handler?"),
        (["run", "app:number", *BIND], "it is an int, not a handler class, server class, server or factory"),
        (["run", "app:Other", *BIND], "the class Other has neither handle() nor serve_forever()"),
        (["run", "app:Server", *BIND], "could not serve app:Server at unix:never.sock: it is a TCP server"),
        (["run", "app:Server", "--bind", "udp://:0"], "could not serve app:Server at udp://:0: it is a TCP server"),
        (["run", "app:Server", "--bind", ":0", "--max-threads", "4"], "(from --max-threads) needs a ThreadingMixIn"),
        (["run", "app:nothing", *BIND], "could not serve app:nothing: it returned None, not a server"),
        (["run", "app:alone", *BIND], "it takes no address; leave --bind out"),
        (["run", "app:factory"], "it takes an address; say --bind HOST:PORT"),
        (["run", "app:plain", "--bind", "127.0.0.1:0"], "it is a TCPServer, which has no PreForkingMixIn"),
        (["run", "app:plain_instance", *BIND], "it is an instance, bound by its own module; leave --bind out"),
        (
            ["run", "app:made_class", *BIND],
            "app:made_class: it returned the class Server, not a server; serve that class, or",
        ),
        (["run", "app:awaited", *BIND], "could not serve app:awaited: it is async, and nobody would await it"),
        (["run", "app:generator", *BIND], "could not serve app:generator: it is a generator, and calling it would run"),
        (["run", "app:closed"], "could not serve app:closed: it is closed"),
        (["run", "app:part", *BIND], "app:part at unix:never.sock: it takes no address; leave --bind out"),
        (["run", "app:instance", *BIND], "could not serve app:instance: it is a Handler, not a handler class, server"),
        (["run", "app:prefork", *BIND], "could not serve app:prefork: it is a module, not a handler class, server"),
        (["run", "app:plain_instance"], "it is a TCPServer, which has no PreForkingMixIn among its bases"),
    ],
)
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # app:plain makes a server that is refused
def test_mistake_is_one_sentence(argv: list[str], said: str, refused: Callable[..., str]) -> None:
    """Every mistake on the command line is one sentence on stderr and exit status 2, with nothing bound."""
    err = refused(*argv)
    assert err.startswith("prefork: could not ")
    assert said in err
    assert err.count("\n") == 1


def test_a_constructor_with_arguments_of_its_own(refused: Callable[..., str]) -> None:
    """A class that takes more than an address is refused with the two lines that have it served."""
    said, *lines = refused("run", "app:Bare", "--bind", ":0").splitlines()
    assert said.endswith(
        "it cannot be called with an address alone; set RequestHandlerClass in Bare, or write a function, and serve "
        "app:make"
    )
    assert lines == ["    def make(address):", "        return Bare(address, RequestHandlerClass)"]


@pytest.mark.parametrize(
    ("target", "said", "call"),
    [
        ("Named", "it cannot be called with an address", "Named(tag=…, server_address=address)"),
        ("Apart", "it cannot be called with an address", "Apart(*address, tag)"),
        ("Later", "it cannot be called with an address", "Later(tag, address)"),
        ("handles", "it handles a request; write a function that", "PreForkingTCPServer(address, handles)"),
    ],
)
def test_the_function_to_write(target: str, said: str, call: str, refused: Callable[..., str]) -> None:
    """It calls the class as that can be called, whatever its parameters are; for a function that handles requests, it
    makes the server."""
    sentence, *lines = refused("run", f"app:{target}", "--bind", ":0").splitlines()
    assert said in sentence
    assert lines == ["    def make(address):", f"        return {call}"]


@pytest.mark.parametrize("command", [["run"], ["run", "--single"], ["check"], ["config"]])
@pytest.mark.parametrize(
    ("target", "could_not"),
    [("serves:Server", "could not import serves"), ("app:serving", "could not make a server of app:serving")],
)
def test_a_program_that_serves_by_itself(
    target: str, could_not: str, command: list[str], app: Path, refused: Callable[..., str]
) -> None:
    """A module that serves when it is imported, and a function that serves, are refused: the command would wait for
    their end, and serve once more."""
    (app / "serves.py").write_text("from app import Server, serving\nserving()\n")
    sentence, hint = refused(command[0], target, "--bind", "127.0.0.1:0", *command[1:]).splitlines()
    assert sentence == f"prefork: {could_not}: it serves by itself, which is for the command to do"
    assert '__name__ == "__main__"' in hint


def test_a_thread_that_serves_while_the_program_is_loaded(refused: Callable[..., str]) -> None:
    """What another thread serves meanwhile is not what the command was asked to serve."""
    said = refused("run", "app:pools_elsewhere", "--bind", ":0")
    assert "could not set max_children to 0" in said


def test_a_property_that_raises(refused: Callable[..., str]) -> None:
    """A setting that cannot be asked for is one sentence, with the class and the error."""
    said = refused("run", "app:Asking", "--bind", "127.0.0.1:0").splitlines()[-1]
    assert said == "prefork: could not ask class app.Asking for max_children: LookupError: no such file"


@pytest.mark.parametrize("command", ["run", "check"])
def test_a_first_parameter_that_is_no_address(command: str, refused: Callable[..., str]) -> None:
    """A class that takes something else first, and binds elsewhere, is refused, with the two lines that have it served
    where that was asked for."""
    said, *lines = refused(command, "app:Modbus", "--bind", "127.0.0.1:0").splitlines()[-3:]
    assert said.endswith(
        "could not serve app:Modbus at 127.0.0.1:0: it binds 127.0.0.2:0; write a function that takes the address, and "
        "serve app:make"
    )
    assert lines == ["    def make(address):", "        return Modbus(context, address=address)"]


@pytest.mark.parametrize(
    ("asked", "bound", "same"),
    [
        ("127.0.0.1:5", ("127.0.0.1", 5), True), ("127.0.0.1:5", ("127.0.0.1", 6), False),
        ("127.0.0.1:5", ("0.0.0.0", 5), False), (":5", ("", 5), True), (":5", ("0.0.0.0", 5), True),
        ("localhost:5", ("127.0.0.1", 5), True), ("[::1]:5", ("::1", 5, 0, 0), True),
        ("unix:a.sock", "./a.sock", True), ("unix:a.sock", b"b.sock", False), ("unix:@a", "\0a", True),
    ],
)  # fmt: skip
def test_bound_and_asked(asked: str, bound: Any, same: bool) -> None:
    """An address is the same however it is written; every address is not one of them."""
    assert _is_at(bound, parse_address(asked)) is same


def test_what_does_not_fit_together_names_both_sources(
    app: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings from two sources that contradict each other are refused by the names of both sources."""
    (app / "s.toml").write_text("[prefork]\ntarget = 'app:Handler'\nbind = 'unix:never.sock'\nmax_children = 2\n")
    monkeypatch.setenv("PREFORK_CONFIG", "s.toml")
    monkeypatch.setenv("PREFORK_MIN_CHILDREN", "3")
    first = "could not set min_children to 3 (from PREFORK_MIN_CHILDREN): it must be at most max_children, which is 2"
    assert refused("run") == f"prefork: {first} (from s.toml: max_children)\n"


def test_error_in_the_users_module_shows_where(refused: Callable[..., str]) -> None:
    """An exception at import comes with the user's part of the traceback, and none of ours."""
    err = refused("run", "broken:Handler", *BIND)
    assert 'broken.py", line 3, in <module>' in err
    assert "return 1 / 0" in err
    assert "importlib" not in err
    assert "targets.py" not in err
    assert err.endswith("prefork: could not import broken: ZeroDivisionError: division by zero\n")


def test_missing_module_in_the_users_module_is_theirs(refused: Callable[..., str]) -> None:
    """A module that the user's module cannot import is reported from there, not as if the target were missing."""
    err = refused("run", "unwell:Handler", *BIND)
    assert "import surely_not_installed" in err
    assert "prefork: could not import unwell: ModuleNotFoundError" in err


def test_leaving_at_import_is_reported(refused: Callable[..., str]) -> None:
    """A module or factory that calls sys.exit() does not pass for a service that ended well."""
    assert "could not import quits: it left with status no configuration" in refused("run", "quits:Handler", *BIND)
    assert "could not make a server of app:leaving: it left with status 3" in refused("run", "app:leaving", *BIND)


def test_error_in_a_factory_shows_where(refused: Callable[..., str]) -> None:
    """An exception in a factory comes with its traceback, although it is an OSError: it is no failure to bind."""
    err = refused("run", "app:factory", *BIND)
    assert "in factory" in err
    assert "targets.py" not in err
    assert "prefork: could not make a server of app:factory: FileNotFoundError" in err


def test_descriptor_for_a_factory(refused: Callable[..., str]) -> None:
    """A factory binds its own socket, so an inherited one is refused."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        said = refused("run", "app:factory", "--bind", f"fd://{sock.fileno()}")
    assert "a factory binds its own socket and cannot be given a descriptor" in said


@pytest.mark.parametrize(("name", "error"), [("unbindable", BindError), ("unbootable", BootError)])
def test_errors_have_their_status(name: str, error: type, capsys: pytest.CaptureFixture[str]) -> None:
    """What could not be bound is 4 and what could not boot is 3, in one sentence."""
    assert main(["run", f"app:{name}", "--bind", "127.0.0.1:0"]) == error.exit_code  # type: ignore[attr-defined]
    err = capsys.readouterr().err
    assert err.startswith("prefork: ")
    assert err.count("\n") == 1


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """`prefork --version` prints the package's version, Python's and the kernel's, in one line."""
    assert main(["--version"]) == 0
    python, kernel = platform.python_version(), platform.release()
    expected = f"prefork {__version__} (cpython {python}, Linux {kernel} {platform.machine()})\n"
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize("row", SUBCOMMAND_TABLE, ids=lambda row: row.name)
def test_every_command_has_a_page(
    row: SubcommandRow, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`prefork --help` lists it; its own page begins with its name, has its exit statuses, and fits 80 columns. No page
    has colours, whatever the terminal has: the one is not argparse's, which has some since Python 3.14."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert f"\n  {row.name} " in out
    assert max(map(len, out.splitlines())) <= 80
    with pytest.raises(SystemExit) as left:
        main([row.name, "--help"])
    assert left.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"prefork {row.name} - {row.help}\n\nusage: prefork {row.name} ")
    assert "\nexit status:\n" in out
    assert ("\n  130 " in out) == (row.interrupted == 130)
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("row", BY_VERB.values(), ids=lambda row: row.verb)
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_every_verb_has_a_page(
    row: Row, option: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`prefork ctl VERB --help` begins with the verb, and says what it takes and which signals do the same."""
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as left:
        main(["ctl", row.verb, option])
    assert left.value.code == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    flat = " ".join(out.split())
    assert flat.startswith(f"prefork ctl {row.verb} - {row.help} usage: prefork ctl {row.verb} ")
    assert [f"{signum.name.removeprefix('SIG')} " in flat for signum in row.signals] == [True] * len(row.signals)
    assert ("--no-wait" in flat, "control_allow_read" in flat) == (row.ends, row.looks)
    if row.argument is not None:
        assert f"{row.argument.help}: {', '.join(row.argument.choices) or f'1 to {row.argument.at_most}'}" in flat
    assert ("argument:" in flat) == (row.argument is not None)


def test_help_explains_everything_in_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`prefork run --help` has every setting with its default under its group, and no line over 80 columns."""
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    flat = " ".join(out.split())
    for field in fields().values():
        if field.name != "target":
            assert f"\n{field.setting.group}:\n" in out
            assert f" {field.option} " in flat
            choices = f": {', '.join(field.setting.choices)}" if field.setting.choices else ""
            default = "" if field.setting.flag else f" (default {field.default_text})"
            assert f"{field.setting.help}{choices}{default}" in flat


@pytest.mark.parametrize(("where", "marked"), [("here", True), ("elsewhere", False), ("", False)])
def test_an_error_in_the_journal(where: str, marked: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each line is marked as an error where stderr is the journal's stream, by the number of its file; sd-daemon(3)."""
    found, fstat = os.stat(tmp_path), os.fstat
    monkeypatch.setattr(os, "fstat", lambda fd: found if fd == 2 else fstat(fd))
    number = {"here": found.st_ino, "elsewhere": found.st_ino + 1}.get(where)
    monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{number}" if number else "")
    monkeypatch.setattr(sys, "stderr", said := io.StringIO())
    complain("one\ntwo\n")
    assert said.getvalue() == ("<3>one\n<3>two\n" if marked else "one\ntwo\n")


class _Std(socketserver.TCPServer):
    pass


class _Six(PreForkingTCPServer):
    address_family = socket.AF_INET6


@pytest.mark.parametrize(
    ("base", "asked", "chooses"),
    [
        (PreForkingTCPServer, "[::1]:0", True),
        (PreForkingTCPServer, "127.0.0.1:0", True),
        (PreForkingTCPServer, "fd://0", False),
        (_Std, "[::1]:0", False),
        (_Six, "[::1]:0", False),
        (PreForkingUnixStreamServer, "unix:s", False),
    ],
)
def test_who_chooses_the_family(base: type, asked: str, chooses: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our TCP server, from the address, and `dual_stack` with it; any other class has that of the address."""
    monkeypatch.setattr("prefork.sockets.addresses._inherited", lambda fd, text: Address("tcp", ("", 0), int(fd), text))
    assert _chooses_family((PreForkingMixIn, base), parse_address(asked)) == chooses


def test_a_second_port_in_a_check(refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a program opens beside its listener is open in the service that runs: the check says what to ask."""
    (tmp_path / "second.py").write_text("raise OSError(98, 'Address already in use')\n")
    monkeypatch.syspath_prepend(tmp_path)
    said = refused("check", "second:Handler", "--bind", "127.0.0.1:0")
    assert said.endswith("OSError: [Errno 98] Address already in use\nThe service may run and have it open: "
                         "open it only if not prefork.rehearsing().\n")  # fmt: skip
    sys.modules.pop("second", None)
    assert "rehearsing" not in refused("run", "second:Handler", "--bind", "127.0.0.1:0")
