"""Where settings come from: option over variable over file over class, and what is said of a mistake in each."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.cli.launch import Launch, fields
from prefork.errors import ConfigError
from prefork.pool import PreForkingTCPServer
from prefork.settings.fields import settings
from prefork.settings.sources import FROM_A_SERVICE, PREFIX, Found, gather

FIELDS = fields()


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where s.toml stands; the directory is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def file(text: str) -> str:
    Path("s.toml").write_text(text)
    return "s.toml"


def refusal(
    options: dict[str, str] | None = None, environ: dict[str, str] | None = None, path: str | None = None
) -> str:
    with pytest.raises(ConfigError) as caught:
        gather(FIELDS, options or {}, environ or {}, path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_option_over_variable_over_file(at: Path) -> None:
    """Each source wins over the one below it, and each value says who set it."""
    path = file("[prefork]\nmax_children = 3\nmin_children = 2\nmax_requests = 100\n")
    environ = {"PREFORK_MAX_CHILDREN": "5", "PREFORK_MIN_CHILDREN": "4", "HOME": "/"}
    found = gather(FIELDS, {"max_children": "7"}, environ, path)
    assert found == {
        "max_children": Found(7, "option", "--max-children"),
        "min_children": Found(4, "variable", "PREFORK_MIN_CHILDREN"),
        "max_requests": Found(100, "file", "s.toml: max_requests"),
    }


ASKED = {"PREFORK_URL": "http://app1.example.net:9465/metrics"}


def test_the_control_socket_is_said_alike() -> None:
    """PREFORK_CONTROL takes what `prefork ctl` takes; PREFORK_CTL and PREFORK_URL, which say whom ctl and top ask, mean
    nothing to a service."""
    for text in ("/run/c.sock", "unix:/run/c.sock"):
        found = gather(FIELDS, {}, {"PREFORK_CONTROL": text, "PREFORK_CTL": "/run/other.sock", **ASKED}, None)
        assert found == {"control_socket": Found("/run/c.sock", "variable", "PREFORK_CONTROL")}


def test_several_addresses(at: Path) -> None:
    """They are said by an option for each, a variable with spaces between them, or a list in a file, and in that order;
    a path may have a space in it, unless what follows looks like an address."""
    asked = (":1", "unix:/a b", "udp://[::1]:2", "unixgram:@n")
    for found in (
        gather(FIELDS, {"bind": list(asked)}, {}, None),
        gather(FIELDS, {}, {"PREFORK_BIND": "  ".join(asked)}, None),
        gather(FIELDS, {}, {}, file(f"[prefork]\nbind = {list(asked)}\n")),
    ):
        assert tuple(each.text for each in found["bind"].value) == asked


@pytest.mark.parametrize(("key", "value", "said"), [
    ("bind", [], "it must be addresses, as texts"), ("bind", [1], "it must be addresses, as texts"),
    ("metrics", [":1"], "it must be one address"), ("control", ["/c"], "it must be one address"),
])  # fmt: skip
def test_a_list_that_is_no_list_of_addresses(key: str, value: list[object], said: str, at: Path) -> None:
    """Metrics and control socket have one address; the service's own are texts, and there is at least one."""
    found = refusal(path=file(f"[prefork]\n{key} = {value}\n"))
    assert found == f"could not set {key} to {value!r} (from s.toml: {key}): {said}"


def test_every_setting_has_every_source(at: Path) -> None:
    """Whatever can be set can be set by an option, a variable and a key of its own, and means the same in each."""
    for name, field in FIELDS.items():
        addresses = {"bind": "[::1]:99", "metrics_address": "unix:/m.sock", "control_socket": "unix:/c.sock"}
        text = {**addresses, "target": "a:b", "working_directory": "/srv"}.get(name)
        text = text or ("::1" if field.setting.unit == "networks" else None)
        text = text or next(iter(field.setting.choices), "yes" if field.type is bool else "2")
        values = {
            gather(FIELDS, {name: text}, {}, None)[name].value,
            gather(FIELDS, {}, {field.variable: text}, None)[name].value,
            gather(FIELDS, {}, {}, file(f'[prefork]\n{field.key} = "{text}"\n'))[name].value,
        }
        assert len(values) == 1, name
    assert len({field.key for field in FIELDS.values()}) == len(FIELDS)


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("max_children = 4", "max_children", 4),
        ('max_children = "4"', "max_children", 4),
        ("request_timeout = 30", "request_timeout", 30.0),
        ("request_timeout = 0.5", "request_timeout", 0.5),
        ('request_timeout = "2m"', "request_timeout", 120.0),
        ('request_timeout = "off"', "request_timeout", None),
        ('max_memory = "512MiB"', "max_memory", 512 * 1024**2),
        ("gc_freeze = false", "gc_freeze", False),
        ('metrics = "127.0.0.1:9465"', "metrics_address", ("127.0.0.1", 9465)),
        ('metrics = "unix:/run/m.sock"', "metrics_address", "/run/m.sock"),
        ('target = "app:Server"', "target", "app:Server"),
        ('log_level = "debug"', "log_level", "debug"),
    ],
)
def test_values_of_a_file(line: str, name: str, value: object, at: Path) -> None:
    """A file has numbers and booleans of its own, and texts as elsewhere; other tables are left alone."""
    found = gather(FIELDS, {}, {}, file(f"[mine]\nmax_children = 'x'\n[prefork]\n{line}\n"))[name].value
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[prefork]\nmax_childs = 4\n", "could not use s.toml: there is no setting max_childs; did you"),
        ("[prefork]\nmetrics_address = ':1'\n", "there is no setting metrics_address; did you mean metrics?"),
        ("[prefork.pool]\nmax_children = 4\n", "there is no setting pool"),
        ("[prefork]\nmax_children = 0\n", "to 0 (from s.toml: max_children): it must be a whole number, at least 1"),
        ("[prefork]\nmax_children = true\n", "could not set max_children to True (from s.toml: max_children)"),
        ("[prefork]\nmax_children = 2.5\n", "could not set max_children to 2.5 (from s.toml: max_children)"),
        ("[prefork]\nmax_children = [4]\n", "could not set max_children to [4] (from s.toml: max_children)"),
        ("[prefork]\nrequest_timeout = nan\n", "could not set request_timeout to nan (from s.toml: request_timeout)"),
        ("[prefork]\nrequest_timeout = '3 moons'\n", "a time in seconds above 0, or off (as in 30s, 500ms, 2m, 1h)"),
        ("[prefork]\nlog_level = 'loud'\n", "(from s.toml: log_level): it must be one of debug, info"),
        ("[prefork]\nbind = 9999\n", "could not read the address '9999' (from s.toml: bind): it must be host:port"),
        ("[prefork]\nmetrics = 'udp://:1'\n", "metrics to 'udp://:1' (from s.toml: metrics): it must be host:port or"),
        ("max_children = 4\n", "could not use s.toml: it has no table [prefork], which is where settings stand"),
        ("prefork = 4\n", "it has no table [prefork]"),
        ("[prefork\n", "could not read s.toml: it is not TOML: expected ']' at the end of a "),
        ("[prefork]\nbind = ':1'\nbind = ':2'\n", "it is not TOML: cannot overwrite a value (at line 3"),
    ],
)  # fmt: skip
def test_mistake_in_a_file_is_one_sentence(text: str, said: str, at: Path) -> None:
    """What is wrong in a file is said with the file, the key, the value and what is allowed."""
    assert said in refusal(path=file(text))


def test_file_that_cannot_be_read(at: Path) -> None:
    """No file, a directory, or bytes that are no text are one sentence with its name."""
    assert refusal(path="none.toml") == "could not read none.toml: no such file or directory"
    assert refusal(path=".") == "could not read .: is a directory"
    (at / "bytes.toml").write_bytes(b"\xff\xfe")
    assert refusal(path="bytes.toml").startswith("could not read bytes.toml: it is not TOML: ")


@pytest.mark.parametrize(
    ("variable", "text", "said"),
    [
        ("PREFORK_MAX_CHILDREN", "0", "could not set max_children to '0' (from PREFORK_MAX_CHILDREN): it must be"),
        ("PREFORK_MAX_CHILDS", "4", "could not use the variable PREFORK_MAX_CHILDS: there is no such setting; did you"),
        ("PREFORK_WORKERS", "4", "could not use the variable PREFORK_WORKERS: there is no such setting"),
        ("PREFORK_BIND", "here", "could not read the address 'here' (from PREFORK_BIND): it must be host:port"),
    ],
)  # fmt: skip
def test_mistake_in_a_variable_is_one_sentence(variable: str, text: str, said: str) -> None:
    """What is wrong in a variable is said with its name, the value and what is allowed."""
    assert refusal(environ={variable: text}).startswith(said)


def test_what_is_overruled_is_checked_too(at: Path) -> None:
    """A mistake in a file is a mistake although an option stands over it."""
    assert "from s.toml" in refusal({"max_children": "4"}, path=file("[prefork]\nmax_children = -1\n"))


def test_empty_variable_is_none() -> None:
    """A variable that is set to nothing is as one that is not set."""
    assert gather(FIELDS, {}, {"PREFORK_MAX_CHILDREN": "", "PREFORK_WHAT": ""}, None) == {}


SERVICES = """
PREFORK_SERVICE_HOST=10.0.0.7 PREFORK_SERVICE_PORT=9999 PREFORK_SERVICE_PORT_METRICS=9465 PREFORK_PORT=tcp://10.0.0.7:9999
PREFORK_PORT_9999_TCP=tcp://10.0.0.7:9999 PREFORK_PORT_9999_TCP_PROTO=tcp PREFORK_PORT_9999_TCP_PORT=9999
PREFORK_PORT_9999_TCP_ADDR=10.0.0.7 PREFORK_PORT_53_UDP=udp://10.0.0.7:53 PREFORK_PORT_53_UDP_PROTO=udp
PREFORK_METRICS_SERVICE_HOST=10.0.0.8 PREFORK_METRICS_SERVICE_PORT=9465 PREFORK_METRICS_PORT=tcp://10.0.0.8:9465
PREFORK_METRICS_PORT_9465_TCP_ADDR=10.0.0.8 PREFORK_METRICS_SERVICE_PORT_HTTP_METRICS=9465
"""


def test_kubernetes_services_are_no_settings() -> None:
    """What Kubernetes sets for Services named prefork and prefork-metrics stops nothing and sets nothing."""
    environ = dict(pair.split("=", 1) for pair in SERVICES.split())
    assert gather(FIELDS, {}, environ | {"PREFORK_MAX_CHILDREN": "3"}, None).keys() == {"max_children"}


def test_no_setting_looks_like_a_service() -> None:
    """No setting has a name that Kubernetes might set."""
    assert not [field.variable for field in FIELDS.values() if re.fullmatch(FROM_A_SERVICE, field.variable)]


@given(st.dictionaries(st.sampled_from([*(f.variable for f in FIELDS.values()), PREFIX + "X", "PATH"]), st.text()))
def test_any_environment_is_read_or_refused(environ: dict[str, str]) -> None:
    """No environment raises anything but ConfigError, and what is read is allowed."""
    try:
        found = gather(FIELDS, {}, environ, None)
    except ConfigError:
        return
    for name, each in found.items():
        FIELDS[name].check(each.value)


def test_the_command_lines_own_settings_are_no_attributes_of_a_server() -> None:
    """What the command line is told and what a server is told have no name in common."""
    own: Any = settings(Launch).keys()
    assert not own & settings(PreForkingTCPServer).keys()
