"""A program that is PID 1: it has a child of its own, a handler leaves it orphans, and it tells how many zombies are
its children."""

import os
import subprocess

import psutil

from prefork import PreForkingTCPServer
from tests.support.programs.served import Told, Who, tell


class Hooks(Told):
    zombies = -1

    def service_actions(self) -> None:
        super().service_actions()
        if self.statistics().workers["idle"] and mine.returncode is None:
            tell("mine", status=mine.wait())
        zombies = sum(process.status() == psutil.STATUS_ZOMBIE for process in psutil.Process().children())
        if zombies != self.zombies:
            self.zombies = zombies
            tell("zombies", count=zombies)


class Handler(Who):
    def do_orphan(self) -> None:
        subprocess.run(["sh", "-c", "(read line; exit 0) <&0 &"], stdin=subprocess.DEVNULL)


mine = subprocess.Popen(["sh", "-c", "exit 7"], stdin=subprocess.DEVNULL)
tell("init", pid_here=os.getpid(), graceful=PreForkingTCPServer.graceful_timeout)
