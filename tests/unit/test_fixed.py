"""Settings that a reload cannot change: under which names they go over it, and which changes are none."""

from typing import Any

import pytest

from prefork import ConfigError, PreForkingTCPServer
from prefork.cli.launch import Launch
from prefork.reload.fixed import fixed_values, refuse_changes


def server(**values: Any) -> Any:
    """One that is bound nowhere."""
    cls: Any = type("Server", (PreForkingTCPServer,), values)
    return cls.__new__(cls)


def test_what_goes_over() -> None:
    """The command line's own under their names; those of a listener under its address, too, and nobody else's."""
    one, other, launch = server(socket_mode=0o600), server(dual_stack=True), Launch()
    launch.single = True
    values = fixed_values({"a": one, "b": other}, one, launch)
    assert values["single"] is True
    assert (values["socket_mode of a"], values["socket_mode of b"]) == (0o600, None)
    assert (values["dual_stack of a"], values["dual_stack of b"]) == (False, True)
    assert "max_children" not in values
    assert not {"socket_mode", "dual_stack", "single of a"} & {*values}
    assert fixed_values({}, one, None) == {}


def test_what_is_refused() -> None:
    """A value that differs from the one before, of the command line's or of a listener that goes on."""
    before, launch = fixed_values({"a": server(socket_mode=0o600), "b": server()}, Launch()), Launch()
    same = {"b": server(), "a": server(socket_mode=0o600), "new": server(socket_mode=0o666)}
    refuse_changes(before, same, launch)
    with pytest.raises(
        ConfigError, match="could not change socket_mode from 0600 to off by a reload: it needs a resta"
    ):
        refuse_changes(before, {"a": server()}, launch)
    launch.single = True
    with pytest.raises(ConfigError, match="could not change single from no to yes by a reload: it needs a restart"):
        refuse_changes(before, same, launch)
