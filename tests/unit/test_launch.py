"""What `run`, `check` and `config` make of a command line before anything is imported: the plan."""

import argparse
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from prefork import process
from prefork.cli import launch
from prefork.cli.launch import EXIT_STATUS, Launch, LaunchPlan, fields, sections
from prefork.cli.pages import Section
from prefork.errors import ConfigError
from prefork.pool import PreForkingTCPServer, pool_of
from prefork.settings.fields import settings
from prefork.sockets.addresses import parse_address


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory; no setting comes from outside, and no test leaves us elsewhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(process, "_entered", None)
    for name in [name for name in os.environ if name.startswith("PREFORK_")]:
        monkeypatch.delenv(name)
    return tmp_path


def read(**texts: str) -> LaunchPlan:
    """As of a command line with these options, `config` among them."""
    return launch.read(argparse.Namespace(**{"config": None, **texts}))


def refusal(**texts: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(**texts)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def file(text: str, path: str = "s.toml") -> str:
    Path(path).write_text("[prefork]\n" + text)
    return path


def test_nothing_is_told() -> None:
    """Then everything is as it is declared, and there is no target to load."""
    plan = read()
    assert (plan.found, plan.values, plan.path, plan.origins) == ({}, {}, None, {})
    assert {name: getattr(plan.launch, name) for name in settings(Launch)} == {
        "target": None, "bind": None, "log_level": "info", "log_format": "text", "log_file": None, "single": False,
    }  # fmt: skip
    with pytest.raises(ConfigError, match="no target is given; say TARGET, PREFORK_TARGET, or target in a file"):
        plan.load()


def test_what_is_the_command_lines_own_and_what_is_the_classs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each value goes to one of the two, and keeps who said it."""
    monkeypatch.setenv("PREFORK_LOG_LEVEL", "debug")
    plan = read(config=file("min_children = 2\nsingle = true\n"), target="app:Server", max_children="3")
    assert (plan.launch.target, plan.launch.log_level, plan.launch.single) == ("app:Server", "debug", True)
    assert plan.values == {"max_children": 3, "min_children": 2}
    assert plan.path == "s.toml"
    assert plan.origins == {
        "target": "TARGET", "max_children": "--max-children", "log_level": "PREFORK_LOG_LEVEL",
        "min_children": "s.toml: min_children", "single": "s.toml: single",
    }  # fmt: skip


def test_every_field_goes_to_one_place() -> None:
    """Nothing that can be set is both the command line's own and the class's."""
    assert settings(Launch).keys() & settings(PreForkingTCPServer).keys() == set()
    assert [*fields()] == [*settings(Launch), *settings(PreForkingTCPServer)]


@pytest.mark.parametrize(
    ("option", "variable", "path"),
    [
        (None, "", None),
        (None, "v.toml", "v.toml"),
        ("o.toml", "v.toml", "o.toml"),
        ("o.toml", "", "o.toml"),
    ],
)
def test_which_file_is_read(
    option: str | None, variable: str, path: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The option's, else the variable's; an empty variable counts as none."""
    file("max_children = 1\n", "v.toml")
    file("max_children = 2\n", "o.toml")
    monkeypatch.setenv("PREFORK_CONFIG", variable)
    plan = launch.read(argparse.Namespace(config=option))
    assert plan.path == path
    assert plan.values == ({} if path is None else {"max_children": 1 if path == "v.toml" else 2})


def test_an_empty_file_name_is_a_mistake() -> None:
    """Of the option: there it is no way to say none."""
    assert refusal(config="").startswith("could not read : no such file")


@pytest.mark.parametrize("source", ["option", "variable"])
def test_the_working_directory_is_where_the_file_is_found(
    source: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The working directory is where the file is found, and where we are when the plan is read, whoever says so."""
    (here / "srv").mkdir()
    file("max_children = 7\n", "srv/s.toml")
    texts = {"working_directory": f"{here}/srv"} if source == "option" else {}
    if source == "variable":
        monkeypatch.setenv("PREFORK_WORKING_DIRECTORY", f"{here}/srv")
    assert read(config="s.toml", **texts).values["max_children"] == 7
    assert Path.cwd() == here / "srv"


def test_a_file_may_name_the_working_directory_where_it_has_a_whole_path(here: Path) -> None:
    """A reload starts there, and would read another file by the same name, or none."""
    (here / "srv").mkdir()
    path = file(f"working_directory = '{here}/srv'\n")
    assert refusal(config=path).endswith("a reload starts there, where s.toml means another file; name the file by its "
                                         "whole path")  # fmt: skip
    assert Path.cwd() == here
    read(config=str(here / path))
    assert Path.cwd() == here / "srv"


def test_an_option_for_the_working_directory_outdoes_the_file(here: Path) -> None:
    """The file is not asked then, so its name may be one from there."""
    (here / "srv").mkdir()
    file("working_directory = '/'\n", "srv/s.toml")
    read(config="s.toml", working_directory=f"{here}/srv")
    assert Path.cwd() == here / "srv"


def test_a_working_directory_that_is_not_there(here: Path) -> None:
    """A working directory that is not there is refused, with its source, before any file is read."""
    said = refusal(config="none.toml", working_directory=f"{here}/srv")
    assert said == f"could not change to the directory {here}/srv (from --working-directory): no such file or directory"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("127.0.0.1:9", "127.0.0.1:9", True),
        ("127.0.0.1:9", "127.0.0.1:8", False),
        ("127.0.0.1:9", "127.0.0.2:9", False),
        (":9", "127.0.0.1:9", True),
        ("127.0.0.1:9", "0.0.0.0:9", True),
        ("127.0.0.1:9", "[::]:9", True),  # the metrics take clients over IPv4 as well
        ("[::]:9", "127.0.0.1:9", False),
        ("127.0.0.1:0", "127.0.0.1:0", False),  # the kernel chooses
        ("udp://127.0.0.1:9", "127.0.0.1:9", False),  # ports of another protocol
        ("unix:s", "unix:s", True),
        ("unix:s", "unix:./s", True),
        ("unix:link/s", "unix:folder/s", True),
        ("unix:s", "unix:t", False),
        ("unixgram:s", "127.0.0.1:9", False),
        ("unix:9", "127.0.0.1:9", False),
    ],
)
def test_two_cannot_listen_at_one_address(one: str, other: str, same: bool, here: Path) -> None:
    """The second is refused by its source, and by whose the address is already."""
    (here / "folder").mkdir()
    (here / "link").symlink_to("folder")
    if not same:
        read(bind=one, metrics_address=other)
        return
    said = refusal(bind=one, metrics_address=other)
    assert said.startswith("could not set metrics to ")
    assert said.endswith(" (from --metrics): that is taken by --bind")


@pytest.mark.parametrize(
    ("binds", "more", "same"),
    [
        ('"0.0.0.0:9", "[::]:9"', "", False),
        ('":9", "[::1]:9"', "", False),
        ('"[::]:9", "[::1]:9"', "", True),
        ('":9", "[::]:9"', "dual_stack = true\n", True),
        ('"127.0.0.1:9", "[::]:9"', "dual_stack = true\n", True),
        ('"127.0.0.1:9", "[::1]:9"', "dual_stack = true\n", False),
        ('"udp://:9", "udp://127.0.0.1:9"', "", True),
        ('"udp://127.0.0.1:9", "127.0.0.1:9"', "", False),
        ('"unix:s", "unixgram:./s"', "", True),  # a path is one file
        ('"unix:@s", "unixgram:@s"', "", False),
        ('"unixgram:@s", "unixgram:@s"', "", True),
    ],
)
def test_two_of_one_service_at_one_address(binds: str, more: str, same: bool) -> None:
    """Refused where the kernel would refuse it, and nowhere else: IPv6 is another address unless IPv4 comes by it."""
    one, other = binds.split(", ")
    for text in (f"bind = [{binds}]\n{more}", f"bind = {one}\n[[prefork.also]]\nbind = {other}\n{more}"):
        if same:
            assert refusal(config=file(text)).startswith("could not set bind to ")
        else:
            read(config=file(text))


def test_one_socket_is_inherited_once() -> None:
    """Two servers cannot both take it over."""
    with socket.create_server(("127.0.0.1", 0)) as inherited:
        text = f"fd://{inherited.fileno()}"
        assert refusal(config=file(f'bind = ["{text}", "{text}"]\n')).endswith("that is taken by s.toml: bind")


def test_an_inherited_socket_takes_no_address_of_ours(here: Path) -> None:
    """An inherited socket takes no address of ours: it is bound already, and the kernel says so if it must."""
    with socket.create_server(("127.0.0.1", 0)) as inherited:
        text = f"fd://{inherited.fileno()}"
        assert parse_address(text).fd == inherited.fileno()
        read(bind=text, metrics_address=f"127.0.0.1:{inherited.getsockname()[1]}")


def test_one_path_for_two_of_three(here: Path) -> None:
    """Control and metrics as well; what is set to nothing takes no place."""
    assert refusal(control_socket="unix:m", metrics_address="unix:m").endswith("that is taken by --metrics")
    read(control_socket="off", metrics_address="off", bind="unix:m")


@pytest.mark.parametrize(("single", "refused"), [("yes", True), ("no", False)])
def test_nobody_reloads_a_single_process(single: str, refused: bool) -> None:
    """`reload_on_change` and `single` do not go together, whoever says either."""
    path = file("reload_on_change = true\n")
    if refused:
        said = refusal(config=path, single=single)
        assert said.startswith("could not set reload_on_change (from s.toml: reload_on_change): with --single")
    else:
        read(config=path, single=single)


def test_the_settings_of_a_pool_without_a_target() -> None:
    """What a pool has by itself, but for what is told; a target is not asked for."""
    holder = read(max_children="3").holder()
    assert issubclass(holder, PreForkingTCPServer)
    assert holder.max_children == 3
    assert holder.graceful_timeout == PreForkingTCPServer.graceful_timeout
    assert PreForkingTCPServer.max_children != 3


def test_a_server_is_told_what_made_it() -> None:
    """The pool knows the launch, and watches the file that it was read from."""
    path = file("max_children = 2\n")
    for config in (None, path):
        plan = launch.read(argparse.Namespace(config=config, target="prefork.examples:Upper", bind="127.0.0.1:0"))
        with plan.build() as server:
            pool: Any = pool_of(server)
            assert pool.launch is plan.launch
            assert pool.watched == (() if config is None else (path,))


def test_a_page_says_what_every_command_says_and_its_own() -> None:
    """Values, variables, files; then its own; exit statuses as it has them; examples last."""
    own = Section("signals", "none")
    found = sections("prefork run", own)
    assert [section.title for section in found] == [
        "values", "environment", "files", "signals", "exit status", "examples",
    ]  # fmt: skip
    assert found[-1] == Section("examples", "prefork run")
    assert found[-2] == Section("exit status", [(str(number), text) for number, text in EXIT_STATUS.items()])
    assert sections("x", exit_status={7: "odd"})[-2] == Section("exit status", [("7", "odd")])


def test_the_exit_statuses_are_those_of_the_reference() -> None:
    """A service manager's file names them by number."""
    assert sorted(EXIT_STATUS) == [0, 1, 2, 3, 4]
    assert EXIT_STATUS[3] == "no worker could start"
    assert EXIT_STATUS[4] == "could not bind"


@pytest.mark.parametrize(
    "name", [name for name, field in fields().items() if field.type is str and field.setting.unit != "address"]
)
def test_no_text_has_a_null_byte(name: str) -> None:
    """A file may have one where an option cannot; the kernel would take what is before it for the whole."""
    field = fields()[name]
    with pytest.raises(ConfigError) as caught:
        field.check("a\0b", "s.toml")
    assert str(caught.value) == f"could not set {field.key} to 'a\\x00b' (from s.toml): it must be without a null byte"


def test_no_queue_is_longer_than_the_kernel_can_count() -> None:
    """listen(2) takes an int."""
    assert read(request_queue_size=str(2**31 - 1)).values["request_queue_size"] == 2**31 - 1
    assert "it must be a whole number, at least 1, at most 2147483647" in refusal(request_queue_size=str(2**31))
