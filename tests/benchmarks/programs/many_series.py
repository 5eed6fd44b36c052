"""Definitions of a service with many series of its own, the same in each worker: all are counted as a worker starts,
and again whenever it is told to by the connection that it makes to `told`, beside the program."""

import os
import socket
import sys
import threading

import prometheus_client

import prefork

COUNTER = prometheus_client.Counter("seen", "by what", ["what"])
SEEN: list[prometheus_client.Counter] = []


def make(series: int) -> None:
    SEEN.extend(COUNTER.labels(str(number)) for number in range(series))


def count() -> None:
    for each in SEEN:
        each.inc()


def count_when_told() -> None:
    with socket.socket(socket.AF_UNIX) as told:
        told.connect(os.path.join(os.path.dirname(sys.argv[0]), "told"))
        while told.recv(1):
            count()
            told.sendall(b"x")


class Hooks(prefork.PreForkingTCPServer):
    def worker_started(self) -> None:
        count()
        threading.Thread(target=count_when_told, daemon=True).start()
