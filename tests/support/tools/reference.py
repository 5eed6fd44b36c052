"""prefork/REFERENCE.md: every table that the code has, as one page. Nothing in that page is written by hand.

    python -m tests.support.tools.reference

writes it anew; tests/unit/test_guides.py fails while it is not what the code says.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from prefork import BindError, BootError, ConfigError, PreforkError, PreForkingTCPServer
from prefork.cli.ctl import term
from prefork.cli.launch import Launch, fields
from prefork.cli.main import SUBCOMMAND_TABLE as SUBCOMMANDS
from prefork.cli.pages import Parser, Subcommand
from prefork.commands import COMMAND_TABLE as COMMANDS
from prefork.commands import Row
from prefork.metrics.application.sums import Merged
from prefork.metrics.board import Board, Word
from prefork.metrics.collector import METRIC_TABLE, Namespace, Queue, Scrape, Spec
from prefork.metrics.companions import CompanionCounts
from prefork.metrics.log_events import LogEvent
from prefork.settings.also import OF_A_LISTENER
from prefork.settings.fields import Field, settings

REFERENCE = Path(__file__).parents[3] / "prefork" / "REFERENCE.md"
ERRORS: tuple[type[PreforkError], ...] = (ConfigError, BootError, BindError)
PAGE = """\
# Reference

Every setting, option, command, signal, exit status, log event and metric. This page is made from the code by
`python -m tests.support.tools.reference`. [Writing a service](README.md) explains what the settings are for,
[Operating](../deploy/operating.md) how a running service is commanded, [Metrics](../metrics/README.md) how its numbers
are read.

## Settings

`max_children` is a class attribute, the option `--max-children`, the variable `PREFORK_MAX_CHILDREN` and a key of the
file. Where another option stands in brackets, the variable and the key are called like that: `metrics_address` is
`PREFORK_METRICS` and `metrics`. What begins with dashes here, and `TARGET`, is no attribute.
[Configuration](README.md#configuration) says which source wins. A table `[[prefork.also]]` of the file is
for [listeners beside the first](README.md#several-listeners): it has `target`, `bind`, and settings of {of_a_listener}.

{settings}
## Options

These stand on the command line alone.

{options}
## Verbs

{verbs}
## Signals

{signals}
## Exit status

{statuses}
In a program the same conditions are exceptions of the constructor and of `serve_forever()`. All three are a
`PreforkError`.

{errors}
## Log events

What a record of prefork's says, as `event` with `--log-format json`. The names stay. Its fields, in the table between
backticks, stand beside it; of a child `kind`, `pid`, and where it has them `slot` or `companion`, and `gen`. An
exception is `exception`, with `type`, `message` and `traceback`.

{events}
## Metrics

`listener` is the address served. What the kernel does not tell is absent, never zero. Counters have `_total` in their
name. The last column names the [alerts](../deploy/prometheus/rules/alerts.yml) that look at it.

{metrics}
These labels have a fixed set of values. Of `signal` more appear when a worker has died of them.

{labels}"""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows of cells as a Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)) + "\n"


def setting_tables() -> str:
    """A heading and a table for each group: the settings of a pool, and what the command line has beside them."""
    rows = defaultdict(list)
    for cls in (Launch, PreForkingTCPServer):
        for field in settings(cls).values():
            rows[field.setting.group].append(_setting(field, is_attribute=cls is not Launch))
    head = ("setting", "default", "allowed", "meaning")
    return "\n".join(f"### {group}\n\n{table(head, rows[group])}" for group in rows)


def _setting(field: Field, *, is_attribute: bool) -> tuple[str, ...]:
    name = f"`{field.name if is_attribute else field.option}`"
    if is_attribute and field.key != field.name:
        name += f" (`{field.option}`)"
    meaning = field.setting.help + ("" if field.setting.reloadable else "; a reload cannot change it")
    return name, field.default_text, field.allowed, meaning


def options() -> str:
    """The arguments of commands that are no settings."""
    commands = defaultdict(list)
    for row in SUBCOMMANDS:
        for option, help in _options(row.name, row.help, row.command()):
            commands[option, help].append(f"`{row.name}`")
    return table(
        ("option", "of `prefork` …", "meaning"),
        [(f"`{option}`", ", ".join(names), help) for (option, help), names in commands.items()],
    )


def _options(name: str, help: str, command: Subcommand) -> Iterator[tuple[str, str]]:
    settings = {field.option for field in fields().values()} if name in ("run", "check", "config") else set()
    for action in Parser(name, help, command)._actions:
        if (
            action.option_strings
            and action.help
            and not settings & set(action.option_strings)
            and action.dest != "help"
        ):
            metavar = "" if action.nargs == 0 else f" {action.metavar or action.dest.upper()}"
            yield action.option_strings[-1] + metavar, action.help


def verbs() -> str:
    """The verbs of `prefork ctl`."""
    return table(
        ("`prefork ctl`", "who", "what it does", "signal"),
        [
            (f"`{term(row)}`", "may look" if row.looks else "may command", row.help, _names(row))
            for row in COMMANDS
            if row.verb
        ],
    )


def signals() -> str:
    """The signals that the master takes."""
    return table(("signal to the master", "what it does"), [(_names(row), row.help) for row in COMMANDS if row.signals])


def _names(row: Row) -> str:
    return ", ".join(signum.name.removeprefix("SIG") for signum in row.signals)


def statuses() -> str:
    """The exit statuses of the commands, as their own pages have them."""
    commands = defaultdict(list)
    for row in SUBCOMMANDS:
        for section in row.command().sections:
            if section.title == "exit status" and not isinstance(section.body, str):
                for status, meaning in section.body:
                    commands[status, meaning].append(f"`{row.name}`")
    rows = [(status, ", ".join(names), meaning) for (status, meaning), names in commands.items()]
    return table(("status", "of `prefork` …", "meaning"), sorted(rows, key=lambda cells: int(cells[0])))


def events() -> str:
    """The events of the log."""
    return table(("event", "meaning"), [(f"`{each.label}`", each.value) for each in LogEvent])


def errors() -> str:
    """The errors that a caller is told about."""
    rows = []
    for error in ERRORS:
        summary = (error.__doc__ or "").partition("\n")[0]
        kind = next(base for base in error.__bases__ if base is not PreforkError)
        rows.append((f"`{error.__name__}`", f"`{kind.__name__}`", str(error.exit_code), summary))
    return table(("error", "is also", "status of `prefork run`", "meaning"), rows)


def metrics() -> str:
    """The metrics of the service."""
    rows = [
        (f"`{_metric(row)}`", row.kind, ", ".join(row.labels), row.help, ", ".join(row.alerts)) for row in METRIC_TABLE
    ]
    return table(("name", "type", "labels", "meaning", "alert"), rows)


def _metric(row: Spec) -> str:
    return row.name + ("_total" if row.kind == "counter" else "")


def labels() -> str:
    """The labels whose values are known beforehand, as the scrape of a service has them that has just begun."""
    board = Board()
    board.add(Word.CONTROL_OPEN)
    board.say_who_keeps({0})
    job = CompanionCounts("", 1.0, True, *[0] * 10)
    begun = Scrape(board.snapshot(), Namespace(), "", (("", 0, Queue()),), True, Merged({}, 0, 0), (job,))
    board.forget()
    rows = []
    for row in METRIC_TABLE:
        found = [values for values, _ in row.samples(begun)]
        for index, label in enumerate(row.labels):
            values = dict.fromkeys(each[index] for each in found if each[index])
            if len(values) > 1:
                rows.append((f"`{_metric(row)}`", label, ", ".join(f"`{value}`" for value in values)))
    return table(("name", "label", "values"), rows)


def page() -> str:
    """The whole page, as the code is now."""
    return PAGE.format(
        of_a_listener=f"{', '.join(OF_A_LISTENER[:-1])} and {OF_A_LISTENER[-1]}",
        settings=setting_tables(),
        options=options(),
        verbs=verbs(),
        signals=signals(),
        statuses=statuses(),
        errors=errors(),
        events=events(),
        metrics=metrics(),
        labels=labels(),
    )


if __name__ == "__main__":
    REFERENCE.write_text(page())
