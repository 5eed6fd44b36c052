"""What programs do with signals in the master: wait for one in a thread, or run an event loop that handles it."""

import asyncio
import signal
import threading
from typing import Any

from tests.support.programs.served import Told, tell


class Waits(Told):
    """Blocks signals, as signal(7) advises, and has a thread that waits for TERM."""

    def serve_forever(self, *args: Any) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGURG, signal.SIGUSR1, signal.SIGQUIT})
        threading.Thread(target=self.end_by_term, daemon=True).start()
        super().serve_forever()

    def end_by_term(self) -> None:
        signal.sigwait({signal.SIGTERM})
        self.shutdown()


class Loops(Told):
    """Runs an event loop now and then, which handles TERM while it runs."""

    looped = False

    def service_actions(self) -> None:
        super().service_actions()
        if not self.looped:
            asyncio.run(self.loop())
            self.looped = True
            tell("looped")

    async def loop(self) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: None)
