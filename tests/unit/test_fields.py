"""Settings: reading the annotations, values alone and together, text, the reference, and the CPUs that may be used."""

import math
import sys
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import prefork
from prefork.errors import ConfigError, PreforkError
from prefork.settings.cpus import cgroup_quota, usable_cpus
from prefork.settings.fields import Field, Setting, parse, settings, show, validate


class Pool:
    max_children: Annotated[int, Setting("most workers at once", at_least=1, default_text="many")] = 5
    min_children: Annotated[int | None, Setting("fewest workers", at_least=1)] = None
    min_spare_children: Annotated[int | None, Setting("fewest idle", at_least=0)] = None
    max_spare_children: Annotated[int | None, Setting("most idle", at_least=0)] = None
    request_timeout: Annotated[float | None, Setting("cut", unit="s", group="Requests", above=0)] = None
    slow_request_timeout: Annotated[float | None, Setting("stacks", unit="s", group="Requests", above=0)] = None
    max_memory: Annotated[int | None, Setting("private memory", unit="bytes", at_least=1)] = None
    gc_freeze: Annotated[bool, Setting("freeze")] = True
    port: Annotated[int, Setting("a port", group="Requests", at_least=0, at_most=65535)] = 80
    title: Annotated[str, Setting("a text", group="Requests")] = "x"
    timeout: float | None = None  # not a setting


FIELDS = settings(Pool)


def sentence(call: Any, *args: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_fields_are_the_annotated_attributes() -> None:
    """Exactly the attributes annotated with a Setting are settings, in the order in which they are written."""
    assert list(FIELDS) == [name for name in Pool.__annotations__ if name != "timeout"]
    setting = Setting("most workers at once", at_least=1, default_text="many")
    assert FIELDS["max_children"] == Field("max_children", int, False, 5, setting)
    assert FIELDS["request_timeout"].type is float
    assert FIELDS["request_timeout"].optional


def test_subclass_changes_default_and_setting() -> None:
    """A plain override changes the default only; one that is annotated with a Setting changes what is allowed too."""

    class Small(Pool):
        max_children = 2
        port: Annotated[int, Setting("a low port", at_most=1023)] = 79

    fields = settings(Small)
    assert fields["max_children"].default == 2
    assert fields["max_children"].setting.help == "most workers at once"
    assert fields["port"].setting.at_most == 1023
    assert list(fields) == list(FIELDS)


SPELLINGS = {
    "all in strings": ("from __future__ import annotations\n", "TypeCheckingOnly | None"),
    "one in a string": ("", "'TypeCheckingOnly | None'"),
}
if sys.version_info >= (3, 14):  # before it, such a class could not be defined
    SPELLINGS["lazy"] = ("", "TypeCheckingOnly | None")


@pytest.mark.parametrize(("first_line", "unknown"), SPELLINGS.values(), ids=SPELLINGS)
def test_an_annotation_that_cannot_be_resolved_harms_no_other(first_line: str, unknown: str) -> None:
    """However annotations are written, one that names what is there for type checkers only hides no setting."""
    source = (
        f"{first_line}class C:\n"
        "    size: Annotated[int | None, Setting('how large', unit='bytes')] = 4096\n"
        f"    other: {unknown} = None\n"
        "    many: Annotated[int, Setting('how many')] = 1\n"
    )
    names: dict[str, Any] = {"__name__": __name__, "Annotated": Annotated, "Setting": Setting}
    exec(source, names)
    found = settings(names["C"])
    assert [(field.name, field.type, field.optional) for field in found.values()] == [
        ("size", int, True),
        ("many", int, False),
    ]


@pytest.mark.parametrize("value", ["127.0.0.1:9465", "[::1]:9465", ":9465", "unix:metrics.sock", "a:b/c"])
def test_an_address_as_the_command_line_has_it(value: str) -> None:
    """On a class it would be the name of a file: it is refused, with what it may be. A path with a colon has a slash
    before it."""
    field = settings(prefork.PreForkingTCPServer)["metrics_address"]
    with pytest.raises(ConfigError, match=r"it must be a tuple \(host, port\) or a path, or None"):
        field.check(value)
    for path in ("metrics.sock", f"./{value}", f"/run/{value}", ("127.0.0.1", 9465)):
        field.check(path)
    field.check("of:the-command-line", "--metrics")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_children", 0),
        ("max_children", True),
        ("max_children", "4"),
        ("max_children", 4.0),
        ("max_children", None),
        ("request_timeout", 0),
        ("request_timeout", -1.0),
        ("request_timeout", math.nan),
        ("request_timeout", math.inf),
        ("request_timeout", True),
        ("gc_freeze", 1),
        ("gc_freeze", None),
        ("port", 65536),
        ("title", 3),
    ],
)
def test_wrong_value_is_one_sentence(name: str, value: object) -> None:
    """A value of a wrong type or out of range is refused with its name, the value, whose it is and what is allowed; and
    what prefork takes it for."""
    server, cls = Pool(), type("Mine", (Pool,), {name: value})
    setattr(server, name, value)
    allowed = FIELDS[name].allowed.removesuffix(", or off")
    for target, whose in (
        (server, "the instance of Pool"),
        (cls, f"class {__name__}.Mine"),
        (cls(), f"class {__name__}.Mine"),
    ):
        with pytest.raises(ConfigError) as caught:
            validate(target)
        assert str(caught.value).startswith(f"could not set {name} to {value!r} (from {whose}): it must be {allowed}")
        assert caught.value.__notes__ == [
            f"prefork takes it for its setting {name}: {FIELDS[name].setting.help}. What is the program's own needs "
            f"another name."
        ]


def test_nothing_has_the_name_that_its_source_gives_it() -> None:
    """What switches off is None in a program, and `off` in text: a message says the one that can be typed there."""
    field = FIELDS["min_children"]
    server = Pool()
    server.min_children = 0
    assert sentence(validate, server).endswith(", at least 1, or None")
    assert sentence(parse, field, "many").endswith(", at least 1, or off")
    assert sentence(field.check, 0, "app.toml: min_children").endswith(", at least 1, or off")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"min_children": 6}, "could not set min_children to 6: it must be at most max_children, which is 5"),
        ({"min_spare_children": 3, "max_spare_children": 2}, "at most max_spare_children, which is 2"),
        ({"min_spare_children": 6}, "at most max_children, which is 5"),
        ({"max_spare_children": 6}, "at most max_children, which is 5"),
        ({"slow_request_timeout": 2.0, "request_timeout": 2}, "it must be less than request_timeout, which is 2"),
    ],
)
def test_values_must_fit_together(values: dict[str, object], said: str) -> None:
    """Settings that contradict each other are refused by the name of both."""
    assert said in sentence(validate, type("Wrong", (Pool,), values))


def test_right_values_pass() -> None:
    """The defaults, an int for a float, equal bounds, and limits that are off are all allowed."""
    validate(Pool)
    server = Pool()
    vars(server).update(min_children=5, max_spare_children=5, request_timeout=3, slow_request_timeout=2.5)
    validate(server)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("max_children", "12", 12),
        ("max_children", " 12 ", 12),
        ("min_children", "none", None),
        ("min_children", "OFF", None),
        ("request_timeout", "30s", 30.0),
        ("request_timeout", "500ms", 0.5),
        ("request_timeout", "2m", 120.0),
        ("request_timeout", "1h", 3600.0),
        ("request_timeout", "1.5", 1.5),
        ("max_memory", "512MiB", 512 * 1024**2),
        ("max_memory", "1.5 GiB", 3 * 512 * 1024**2),
        ("max_memory", "10MB", 10_000_000),
        ("max_memory", "123456789012345678", 123456789012345678),
        ("gc_freeze", "no", False),
        ("gc_freeze", "TRUE", True),
        ("title", " as it is ", " as it is "),
    ],
)
def test_text_is_read(name: str, text: str, value: object) -> None:
    """Human units, plain numbers, yes and no, and off are read, each to a value of the setting's own type."""
    read = parse(FIELDS[name], text)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("max_children", "0"),
        ("max_children", "2.5"),
        ("max_children", "four"),
        ("max_children", "4s"),
        ("max_children", "none"),
        ("max_children", ""),
        ("request_timeout", "nan"),
        ("request_timeout", "inf"),
        ("request_timeout", "30 parsecs"),
        ("request_timeout", "0ms"),
        ("max_memory", "0.3"),
        ("max_memory", "512MiBs"),
        ("gc_freeze", "maybe"),
        ("request_timeout", "9" * 400),
    ],
)
def test_wrong_text_is_one_sentence(name: str, text: str) -> None:
    """Text that means nothing, or nothing allowed, is refused with the name, the text and what is allowed."""
    said = sentence(parse, FIELDS[name], text)
    assert said.startswith(f"could not set {name} to {text!r}: it must be {FIELDS[name].allowed}")


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    """No text raises anything but ConfigError, and what is read is allowed."""
    for field in FIELDS.values():
        try:
            value = parse(field, text)
        except ConfigError:
            continue
        field.check(value)


@given(st.one_of(st.none(), st.integers(1, 2**60)))
def test_what_is_shown_can_be_typed(value: int | None) -> None:
    """A size as it is shown reads back as the same size."""
    assert parse(FIELDS["max_memory"], show(value, "bytes")) == value


def test_errors_are_what_they_were_in_the_standard_library() -> None:
    """A caller that catches ValueError or PreforkError catches a wrong setting."""
    assert issubclass(ConfigError, (ValueError, PreforkError))
    assert ConfigError.exit_code == 2


def test_usable_cpus_is_positive() -> None:
    """There is always at least one CPU to use."""
    assert usable_cpus() >= 1


def test_quota_v2_is_the_smallest_on_the_way_up(tmp_path: Path) -> None:
    """A cgroup v2 may use what it and every cgroup above it allow."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "cpu.max").write_text("max 100000\n")
    (tmp_path / "a" / "cpu.max").write_text("150000 100000\n")
    assert cgroup_quota("0::/a/b\n", str(tmp_path)) == 1.5
    assert cgroup_quota("0::/\n", str(tmp_path)) is None


def test_quota_v1_outside_the_mount(tmp_path: Path) -> None:
    """Where the named path is missing, as in a container of cgroup v1, the mount's own root has the quota."""
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("50000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert cgroup_quota("5:memory:/x\n4:cpu,cpuacct:/docker/1f\n0::/\n", str(tmp_path)) == 0.5
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert cgroup_quota("4:cpu,cpuacct:/docker/1f\n", str(tmp_path)) is None


def test_quota_that_cannot_be_read_limits_nothing(tmp_path: Path) -> None:
    """A cgroup file of unknown form is no limit and no error."""
    (tmp_path / "cpu.max").write_text("what\n")
    assert cgroup_quota("0::/../elsewhere\n", str(tmp_path)) is None
