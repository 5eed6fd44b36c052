"""A pool that serves in a thread and asks for a reload in another: tells why that is refused."""

import threading

from prefork import PreforkError, PreForkingTCPServer
from tests.support.programs.served import Told, Who, log_everything, tell

served = threading.Event()


class Server(Told, PreForkingTCPServer):
    def service_actions(self) -> None:
        super().service_actions()
        served.set()


def ask_for_it(server: Server) -> None:
    served.wait()
    try:
        server.reload()
    except PreforkError as exc:
        tell("refused", why=str(exc))
    server.shutdown()


if __name__ == "__main__":
    log_everything()
    with Server(("127.0.0.1", 0), Who) as server:
        threads = [threading.Thread(target=server.serve_forever), threading.Thread(target=ask_for_it, args=(server,))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
