"""`prefork config`: every setting in force and its source.

Runs in its own process. Imports the target, because a class may set values too; must not bind its addresses.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from prefork.workers.definitions import definer, is_ours

from ..settings.also import Also
from ..settings.fields import Field, settings, show
from ..settings.in_force import value_of
from ..settings.sources import ALSO
from . import launch
from .dry_run import dry_run
from .launch import Launch, LaunchPlan
from .pages import Parser, Section, Subcommand
from .targets import applies

__all__ = ["CONFIG"]

_DESCRIPTION = f"""\
Print every setting that prefork run would have in force with the same arguments, and who set it: an option, a
variable, the file, a class of yours, or nobody (default). TARGET is imported, a factory is called, and nothing is
bound. Without a TARGET anywhere, what a pool has by itself.

{launch.TARGET_TEXT}
"""
_EXIT_STATUS = {status: text for status, text in launch.EXIT_STATUS.items() if status < 3} | {
    0: "printed",
    130: "interrupted before it was done",
}
JSON_TEXT = """\
With --json: an object with "target", and under "settings" for each by its name in a file: "value" (seconds, bytes,
true or false, a text, or null for off), "source" (option, variable, file, class, instance or default), "from" (its
name), "attribute" (its name in a class) and "reloadable" (whether a reload changes it). Under "also" the same of what
each table [[prefork.also]] sets, where there are such.
"""
_EXAMPLES = """\
  prefork config app:Server --config service.toml

  prefork config app:Server --json | jq .settings.max_children.from
"""


class EffectiveSetting(NamedTuple):
    field: Field
    value: Any
    kind: str
    origin: str

    @property
    def key(self) -> str:
        return self.field.key

    @property
    def text(self) -> str:
        if self.value is None and self.field.setting.default_text:
            return self.field.setting.default_text
        return show(self.value, self.field.setting.unit)

    def as_json(self) -> dict[str, Any]:
        plain = self.value is None or isinstance(self.value, (bool, int, float))
        return {
            "value": self.value if plain else self.text,
            "source": self.kind,
            "from": self.origin,
            "attribute": None if self.field.name in settings(Launch) else self.field.name,
            "reloadable": self.field.setting.reloadable,
        }


def effective_settings(plan: LaunchPlan, holder: Any) -> Iterator[EffectiveSetting]:
    """Yield every setting, the command line's own first. `holder` is the server or its class."""
    for owner in (plan.launch, holder):
        cls = owner if isinstance(owner, type) else type(owner)
        for name, field in settings(cls).items():
            if name == "target" or not applies(cls, name):
                continue
            found = plan.found.get(name)
            kind, origin = (found.kind, found.origin) if found is not None else _by_program(owner, cls, name)
            yield EffectiveSetting(field, value_of(owner, name), kind, origin)


def _by_program(owner: object, cls: type, name: str) -> tuple[str, str]:
    """Return the kind and the name of the source in the program: default, class or instance."""
    if owner is not cls and name in vars(owner) and cls is not Launch:
        return "instance", f"the instance of {cls.__qualname__}"
    klass = definer(cls, name) or cls
    ours = is_ours(klass) and klass.__module__ != "prefork.examples"
    return ("default", "default") if ours else ("class", f"class {klass.__module__}.{klass.__qualname__}")


def _add_arguments(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")
    launch.add_arguments(parser)


def _run(args: argparse.Namespace) -> int:
    plan = launch.read(args)
    with dry_run():
        holder = plan.holder()
        found = list(effective_settings(plan, holder))
        if not isinstance(holder, type):
            holder.server_close()
    if args.json:
        named = {each.field.key: each.as_json() for each in found}
        others = [{each.key: each.as_json() for each in _of_table(table)} for table in plan.also]
        told = {"target": plan.launch.target, "settings": named, **({ALSO: others} if others else {})}
        sys.stdout.write(json.dumps(told, indent=2) + "\n")
    else:
        rows = [(each.key, each) for each in found]
        for number, table in enumerate(plan.also, 1):
            rows += ((f"{ALSO} {number} {each.key}", each) for each in _of_table(table))
        sys.stdout.write(_table(rows))
    return 0


def _of_table(table: Also) -> Iterator[EffectiveSetting]:
    """Yield what one of the tables [[prefork.also]] sets."""
    known = launch.fields()
    for name, each in table.found.items():
        yield EffectiveSetting(known[name], each.value, each.kind, each.origin)


def _table(found: list[tuple[str, EffectiveSetting]]) -> str:
    rows = [(name, each.text, each.origin) for name, each in found]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "".join(f"{name:{widths[0]}}  {value:{widths[1]}}  {origin}\n" for name, value, origin in rows)


CONFIG = Subcommand(
    "[TARGET] [--json] [--NAME VALUE ...]",
    _DESCRIPTION,
    _add_arguments,
    _run,
    (Section("output", JSON_TEXT), *launch.sections(_EXAMPLES, exit_status=_EXIT_STATUS)),
)
