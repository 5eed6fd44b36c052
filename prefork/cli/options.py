"""Options made from settings: `max_children` becomes --max-children, with the type and range of its field.

Owns the appearance of a field on the command line. Must not parse values, which fields.py does. Runs in the process of
the command line.
"""

import argparse
from collections.abc import Mapping
from typing import Any

from ..settings.fields import Field
from .pages import Parser, unusable

__all__ = ["add_settings", "texts"]


def add_settings(parser: Parser, fields: Mapping[str, Field]) -> None:
    """Add an option per field, under its group's title. Groups are in order of first use."""
    for field in fields.values():
        if field.setting.positional:
            parser.add_argument(field.name, metavar=field.metavar, nargs="?", help=field.setting.help)
    with_option = [field for field in fields.values() if not field.setting.positional]
    titles = dict.fromkeys(field.setting.group for field in with_option)
    groups = {title: parser.add_argument_group(title) for title in titles}
    for field in with_option:
        group = groups[field.setting.group]
        if field.setting.flag:
            group.add_argument(
                field.option, action="store_const", const="yes", dest=field.name, help=field.setting.help
            )
        else:
            action: Any = "append" if field.setting.several else _Once if field.setting.unit == "address" else "store"
            group.add_argument(field.option, metavar=field.metavar, dest=field.name, help=_help(field), action=action)


class _Once(argparse.Action):
    """An option that would be taken for one more address if it was given twice. Of any other the last one counts."""

    def __call__(
        self, parser: object, namespace: argparse.Namespace, values: Any, option_string: object = None
    ) -> None:
        before = getattr(namespace, self.dest)
        if before is not None:
            raise unusable(f"{self.option_strings[0]} is given twice, {before} and {values}; say one")
        setattr(namespace, self.dest, values)


def _help(field: Field) -> str:
    setting = field.setting
    choices = f": {', '.join(setting.choices)}" if setting.choices else ""
    return f"{setting.help}{choices} (default {field.default_text})".replace("%", "%%")


def texts(args: argparse.Namespace, fields: Mapping[str, Field]) -> dict[str, str | list[str]]:
    """Return the text given for each field, as typed; all that were given for one that may be given again."""
    found = {name: getattr(args, name, None) for name in fields}
    return {name: text for name, text in found.items() if text is not None}
