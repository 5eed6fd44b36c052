"""The complaints of a log that no test asked for: an ERROR line or a traceback that nobody expects fails.

Pure. A complaint is a whole record: the line that begins it and all that belongs to it, in whatever format.
"""

import re

_LEVEL = r"(?:\x1b\[[\d;]*m)?(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL)\b"
# A time and a level as in our formats and those of tests, or a level alone as in logging's own; the journal's; JSON.
_RECORD = re.compile(rf"(?:[\d:.,-]+ ){{0,2}}{_LEVEL}|<(?P<priority>\d)>(?!    )|\{{.*\"level\": \"(?P<json>\w+)\"")
_ERRORS = {"ERROR", "CRITICAL", "0", "1", "2", "3", "error", "critical"}
_TRACEBACK = re.compile(r"(?:<\d>)? *Traceback \(most recent call last\):|.*\\nTraceback \(most recent")
# Written by Python itself, outside of any logging.
_PYTHONS_OWN = re.compile(r"Fatal Python error|Exception ignored |Exception in |Exception occurred during processing")
_CHAINED = re.compile(r".*(?:During handling of the above exception|exception was the direct cause)")


def complaints(log: str) -> list[str]:
    """The records that are errors or hold a traceback, in their order."""
    found: list[list[str]] = []  # the records, each with its lines
    bad: set[int] = set()
    told = False  # the record has had its traceback
    for line in log.splitlines():
        record, traceback = _RECORD.match(line), bool(_TRACEBACK.match(line))
        again = traceback and told and not any(map(_CHAINED.match, found[-1][-3:]))
        if record or again or not found or _PYTHONS_OWN.match(line):
            found.append([])
            told = False
        found[-1].append(line)
        told = told or traceback
        error = record is not None and not _ERRORS.isdisjoint(record.groups())
        if error or traceback or _PYTHONS_OWN.match(line):
            bad.add(len(found) - 1)
    return ["\n".join(found[number]) for number in sorted(bad)]


class Judged:
    """Has a log that is judged at the end: every error in it must have been asked for until then."""

    def __init__(self) -> None:
        self._expects: list[str] = []
        self._allows: list[str] = []

    @property
    def log(self) -> str:
        raise NotImplementedError

    def expect(self, *patterns: str) -> None:
        """Each of these regular expressions must find a complaint in the log, and all that it finds are fine."""
        self._expects += patterns

    def allow(self, *patterns: str) -> None:
        """Let these come; they need not."""
        self._allows += patterns

    def judge(self) -> None:
        """Fail for a complaint that was not asked for, and for one that was and never came."""
        came = complaints(self.log)
        unasked = [each for each in came if not any(re.search(one, each) for one in (*self._expects, *self._allows))]
        assert not unasked, "the log holds what the test has not asked for:\n" + "\n".join(unasked)
        missing = [one for one in self._expects if not any(re.search(one, each) for each in came)]
        assert not missing, f"the log has no error or traceback with {missing}"
