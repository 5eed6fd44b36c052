"""Options made from settings: `max_children` is --max-children, of type and range as its field says.

Owns how a field looks on a command line. Runs in the process of the command line.
"""

import argparse
from collections.abc import Mapping
from typing import Any

from .config import Field, parse
from .pages import Parser

__all__ = ["add_settings", "given"]


def add_settings(parser: Parser, fields: Mapping[str, Field]) -> None:
    """An option for each field, under its group's title, groups in the order in which they are first met."""
    groups: dict[str, argparse._ArgumentGroup] = {}
    for field in fields.values():
        title = field.setting.group
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        text = f"{field.setting.help} (default {field.default_text})".replace("%", "%%")
        groups[title].add_argument(field.option, metavar=field.metavar, dest=field.name, help=text)


def given(args: argparse.Namespace, fields: Mapping[str, Field]) -> dict[str, Any]:
    """The values of the options that were given. Raises ConfigError."""
    texts = {name: getattr(args, name) for name in fields}
    return {name: parse(fields[name], text) for name, text in texts.items() if text is not None}
