"""A service whose program changes what logging does, each in a request that asks for it."""

import logging
from typing import Any

from tests.support.programs.served import Who

access = logging.getLogger("prefork.access")
standard = logging.getLogRecordFactory()


def traced(*args: Any, **kwargs: Any) -> logging.LogRecord:
    record = standard(*args, **kwargs)
    record.trace = "t-1"
    return record


class Handler(Who):
    def do_filter(self) -> None:
        access.addFilter(lambda record: record.__dict__["fields"]["outcome"] != "ok")

    def do_unfilter(self) -> None:
        access.filters.clear()

    def do_factory(self) -> None:
        logging.setLogRecordFactory(traced)

    def do_quiet(self) -> None:
        logging.disable(logging.INFO)

    def do_loud(self) -> None:
        logging.disable(logging.NOTSET)

    def do_handler(self) -> None:
        logging.getLogger().addHandler(logging.FileHandler("theirs"))
