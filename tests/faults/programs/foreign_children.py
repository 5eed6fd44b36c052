"""A program with children of its own in the master, one that ends early and one late: it tells how they ended."""

import subprocess

from tests.support.programs.served import Told, tell

early = subprocess.Popen(["sh", "-c", "exit 7"])
late = subprocess.Popen(["sh", "-c", "read line; exit 7"], stdin=subprocess.PIPE)


class Hooks(Told):
    def service_actions(self) -> None:
        super().service_actions()
        assert late.stdin is not None
        if self.statistics().exits and not late.stdin.closed:
            late.stdin.write(b"\n")
            late.stdin.close()
            tell("foreign", early=early.wait(), late=late.wait())
