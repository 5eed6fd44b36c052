"""The common part of `prefork run`, `check` and `config`: their arguments, and the server that these describe.

Owns the command line's own settings (`Launch`). They are declared like those of a server's class, so that options,
variables and file keys come from one list. Must not serve. Runs in the process that becomes the master.
"""

import argparse
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, NamedTuple

from .. import logs
from ..errors import BindError, ConfigError
from ..pool import PreForkingTCPServer, pool_of
from ..process import enter
from ..settings.also import OWN, Also, also, is_of_a_listener
from ..settings.fields import Field, Setting, settings, show
from ..settings.sources import ALSO, FILE_VARIABLE, Found, gather, read_table
from ..sockets.addresses import Address, address_text
from .options import add_settings, texts
from .pages import Parser, Section
from .targets import Server, Target, build, holder, load

__all__ = ["EXIT_STATUS", "TARGET_TEXT", "Launch", "LaunchPlan", "add_arguments", "read", "sections"]

TARGET_TEXT = """\
TARGET is module:attribute; the current directory is importable, which is the one of --working-directory where that is
given. The attribute is a handler class (served with threads if --max-threads is given), a server class, a server
instance (bound by its own module: no --bind), or a function that takes the address and returns an instance.
"""
VALUES_SECTION = Section(
    "values",
    "TIME is in seconds, or 500ms, 30s, 2m, 1h. SIZE is in bytes, or 512MiB, 2GiB. MODE is octal. "
    "NETWORKS are as 10.0.0.0/8, ::1, unix. "
    '"off" is taken where the Reference allows it.',
)
ENVIRONMENT = Section(
    "environment",
    (
        ("PREFORK_NAME", "each option --name can be set by a variable: PREFORK_MAX_CHILDREN is --max-children, "
         "PREFORK_TARGET the target, PREFORK_CONFIG the file; an empty variable counts as none"),
        ("precedence", "option over variable over file over the attribute of the class"),
    ),
)  # fmt: skip
FILES = Section(
    "files",
    (
        ("FILE.toml", "what --config names: the table [prefork] may set every option by its name with underscores, "
         "and target; times and sizes are numbers or texts as above, and bind may be a list; each table "
         "[[prefork.also]] has the target and bind of what the same pool serves as well; other tables are left alone"),
    ),
)  # fmt: skip
EXIT_STATUS: dict[int, str] = {
    0: "asked to end",
    1: "internal error",
    2: "wrong usage or configuration; nothing was bound",
    3: "no worker could start",
    4: "could not bind",
}


def sections(examples: str, *own: Section, exit_status: Mapping[int, str] = EXIT_STATUS) -> tuple[Section, ...]:
    """Return the sections of a command's help page: the common ones and its own."""
    statuses = Section("exit status", [(str(status), text) for status, text in exit_status.items()])
    return VALUES_SECTION, ENVIRONMENT, FILES, *own, statuses, Section("examples", examples)


class Launch:
    """The command line's own settings, which are not settings of the server's class."""

    target: Annotated[
        str | None, Setting("what to serve, as in app:Server", group="Service", metavar="TARGET", positional=True)
    ] = None
    bind: Annotated[
        tuple[Address, ...] | None,
        Setting("HOST:PORT, :PORT, [::]:PORT, udp://HOST:PORT, unix:/PATH, unix:@NAME, unixgram:/PATH, "
                "fd://N (inherited), or systemd[:NAME]; say it again for another address of the same service",
                group="Service", unit="address", default_text="none", several=True),
    ] = None  # fmt: skip
    log_level: Annotated[
        str, Setting("the least that is logged", group="Logs", choices=logs.LEVELS, metavar="LEVEL")
    ] = "info"
    log_format: Annotated[
        str, Setting("how a line is written", group="Logs", choices=logs.FORMATS, metavar="FORMAT")
    ] = "text"
    log_file: Annotated[
        str | None, Setting("log there; USR1 reopens it after a rotation", group="Logs", metavar="PATH",
                            default_text="stderr"),
    ] = None  # fmt: skip
    single: Annotated[
        bool, Setting("serve in this process, without a fork, one request after another: for a debugger",
                      group="Development", flag=True, reloadable=False),
    ] = False  # fmt: skip


class LaunchPlan(NamedTuple):
    """A parsed command line with all its settings. Nothing of the program has been imported yet."""

    found: Mapping[str, Found]
    launch: Launch
    values: Mapping[str, Any]  # the settings of the server's class
    path: str | None  # the configuration file
    also: tuple[Also, ...] = ()  # what the pool serves beside it

    @property
    def origins(self) -> dict[str, str]:
        return {name: found.origin for name, found in self.found.items()}

    @property
    def bind(self) -> tuple[Address | None, ...]:
        """The addresses to serve the target at; None: where it is bound by itself."""
        return self.launch.bind or (None,)

    def load(self) -> Target:
        """Import the target. Raises ConfigError."""
        if self.launch.target is None:
            raise ConfigError(
                "could not read the command line: no target is given; say TARGET, PREFORK_TARGET, or target in a file"
            )
        return load(self.launch.target, self.origins)

    def build(self) -> Server:
        """Return the bound server. Raises ConfigError or BindError."""
        target = self.load()
        server = _build(target, self.bind[0], self.values, self.origins.get("bind"))
        pool = pool_of(server)
        try:
            for other in self._build_others(target):
                try:
                    pool.serve_also(other)
                except BaseException:
                    other.server_close()
                    raise
        except BaseException:
            server.server_close()
            raise
        pool.launch, pool.target, pool.origins = self.launch, self.launch.target, self.origins
        if self.path is not None:
            pool.watched = (self.path,)
        return server

    def _build_others(self, target: Target) -> Iterator[Server]:
        for address in self.bind[1:]:
            yield _build(target, address, self.values, self.origins["bind"])
        for each in self.also:
            yield from self._build_also(each, target)

    def _build_also(self, also: Also, target: Target) -> Iterator[Server]:
        """Build the servers of one of those tables: the pool's values are in force for each, and its own."""
        known, own = fields(), {name: each for name, each in also.found.items() if name not in OWN}
        values = {name: value for name, value in self.values.items() if not is_of_a_listener(known[name])}
        values |= {name: each.value for name, each in own.items()}
        origins = {**self.origins, **{name: each.origin for name, each in own.items()}}
        text = also.value("target")
        other = load(text or target.text, origins) if text or own else target
        if other is not target:
            other.address_by = "bind in its table [[prefork.also]]"
        for address in also.value("bind") or (None,):
            yield _build(other, address, values, also.found["bind"].origin if address else None)

    def holder(self) -> Any:
        """Return the object with the settings in force: the server's class, or the server itself if need be.

        Without a target, they are the defaults of a pool. Raises ConfigError or BindError, as `build()` does.
        """
        if self.launch.target is None:
            return type("none", (PreForkingTCPServer,), dict(self.values))
        return holder(self.load(), self.bind[0], self.values)


def _build(target: Target, address: Address | None, values: Mapping[str, Any], origin: str | None) -> Server:
    """Return the bound server. `origin`: what has asked for the address."""
    try:
        return build(target, address, values)
    except BindError as exc:
        if address is not None and origin is not None and f" {address_text(address.address)}: " in str(exc):
            exc.named(origin)
        raise


def fields() -> Mapping[str, Field]:
    """Return every setting, the command line's own first."""
    return {**settings(Launch), **settings(PreForkingTCPServer)}


def add_arguments(parser: Parser) -> None:
    parser.add_argument("--config", metavar="FILE", help="read settings from the table [prefork] of this TOML file")
    add_settings(parser, fields())


def read(args: argparse.Namespace) -> LaunchPlan:
    """Read all sources, check them together, and change to the working directory. Raises ConfigError."""
    known, options = fields(), texts(args, fields())
    path = args.config if args.config is not None else os.environ.get(FILE_VARIABLE) or None
    _enter(gather(known, options, os.environ, None))
    found = gather(known, options, os.environ, path)
    _enter(found, path)
    launch = Launch()
    for name in settings(Launch):
        if name in found:
            setattr(launch, name, found[name].value)
    values = {name: each.value for name, each in found.items() if not hasattr(launch, name)}
    others = () if path is None else also(known, read_table(path).get(ALSO, []), path)
    _check_addresses(known, [found, *(each.found for each in others)])
    if launch.single and values.get("reload_on_change"):
        origin = found["reload_on_change"].origin
        raise ConfigError(f"could not set reload_on_change (from {origin}): with --single there is nobody who reloads")
    if launch.single and (others or len(launch.bind or ()) > 1):
        raise ConfigError("could not serve with --single: it serves one address, and there are several")
    return LaunchPlan(found, launch, values, path, others)


def _enter(found: Mapping[str, Found], path: str | None = None) -> None:
    """Change to the working directory, if set. Called first, so that the file is found there too."""
    where = found.get("working_directory")
    if where is None:
        return
    if path is not None and where.kind == "file" and not os.path.isabs(path):
        raise ConfigError(
            f"could not set working_directory (from {where.origin}): a reload starts there, where {path} means another "
            "file; name the file by its whole path"
        )
    enter(where.value, where.origin)


def _check_addresses(known: Mapping[str, Field], tables: Iterable[Mapping[str, Found]]) -> None:
    """Raise ConfigError if two settings have the same address."""
    taken: list[tuple[object, str]] = []
    for field, each, value, v4_as_well in _asked(known, tables):
        place = _place(value, v4_as_well)
        for other, origin in taken:
            if _same(place, other):
                said = f"could not set {field.key} to {show(value, 'address')} (from {each.origin})"
                raise ConfigError(f"{said}: that is taken by {origin}")
        taken.append((place, each.origin))


def _asked(
    known: Mapping[str, Field], tables: Iterable[Mapping[str, Found]]
) -> Iterator[tuple[Field, Found, Any, bool]]:
    """Yield each address of these tables, with whether its listener takes clients over IPv4 besides those over IPv6."""
    for found in tables:
        dual_stack = "dual_stack" in found and found["dual_stack"].value
        for name, each in found.items():
            field = known[name]
            if field.setting.unit == "address" and each.value is not None:
                for value in each.value if field.setting.several else (each.value,):
                    yield field, each, value, dual_stack or not field.setting.several


class _Port(NamedTuple):
    """A port that one socket takes, at one host or at all, of these families."""

    kind: str
    host: str
    port: int
    families: frozenset[int]


def _place(value: Any, v4_as_well: bool) -> object:
    """Return what a socket at this address takes for itself."""
    if not isinstance(value, Address):
        value = Address("unix" if isinstance(value, str) else "tcp", value, None, "")
    if value.fd is not None:
        return value.fd
    if isinstance(path := value.address, str):  # streams and datagrams share paths, but no abstract names
        return (value.kind, path) if path[:1] == "\0" else os.path.realpath(path)
    host, port = path
    families = {socket.AF_INET6 if ":" in host else socket.AF_INET}
    if v4_as_well and host == "::":
        families.add(socket.AF_INET)
    return _Port(value.kind, host, port, frozenset(families))


def _same(one: object, other: object) -> bool:
    if not (isinstance(one, _Port) and isinstance(other, _Port)):
        return one == other
    if one.kind != other.kind or one.port != other.port or one.port == 0 or not one.families & other.families:
        return False
    return one.host == other.host or not {"", "0.0.0.0", "::"}.isdisjoint((one.host, other.host))
