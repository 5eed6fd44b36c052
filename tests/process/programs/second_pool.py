"""Two pools in one process: the second is tried in a thread while the first serves, and again when that has ended."""

import threading

from prefork import PreforkError, PreForkingTCPServer
from tests.support.programs.served import Told, Who, log_everything, tell


class Pool(Told, PreForkingTCPServer):
    max_children = 1

    def worker_started(self) -> None:
        tell("worker_started", of=self.service_name)


class First(Pool):
    service_name = "first"
    tried = False

    def service_actions(self) -> None:
        super().service_actions()
        if not self.tried:
            self.tried = True
            threading.Thread(target=try_second).start()


class Second(Pool):
    service_name = "second"


def try_second() -> None:
    with Second(("127.0.0.1", 0), Who) as second:
        try:
            second.serve_forever()
        except PreforkError as exc:
            tell("refused", why=str(exc), notes=exc.__notes__)


if __name__ == "__main__":
    log_everything()
    with First(("127.0.0.1", 0), Who) as first:
        first.serve_forever()
    with Second(("127.0.0.1", 0), Who) as second:
        second.serve_forever()
