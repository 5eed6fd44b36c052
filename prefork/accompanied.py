"""The companions of a server that has a pool: what the master starts, and what each process does first.

Runs in the master; `_accompany()` in a companion, as a copy. Must not decide when one is started: that is policy's
business. settings/companions.py has what a program may declare, workers/companion.py the process from inside.
"""

import os
from functools import partial
from typing import Any

import setproctitle

from prefork.metrics.companions import COMPANIONS_MAX
from prefork.workers.bootstrap import Birth, Master
from prefork.workers.companion import Companion, CompanionTerms

from .errors import ConfigError
from .master.service import CompanionSpec
from .settings.companions import Declared, declared
from .settings.in_force import InForce, value_of
from .settings.sources import SLOT_VARIABLE
from .supervised.state import Supervised


def checked(server: Any) -> tuple[Declared, ...]:
    """Return what the server or server class declares. Raises ConfigError."""
    found = declared(server)
    if len(found) > COMPANIONS_MAX:
        raise ConfigError(f"could not set companions: there are {len(found)}, it must be at most {COMPANIONS_MAX}")
    return found


class Accompanied(Supervised):
    """State of a server that may have companions."""

    def __init__(self, server: Any) -> None:
        super().__init__(server)
        self.companion: Companion | None = None  # in a companion

    def handle_one(self) -> None:
        """Implement `handle_request()`. Raises RuntimeError in a companion, which has no listener.

        Raises ConfigError where a user is set: this process may be root, and has to stay what it is.
        """
        if value_of(self.server, "user") is not None:
            raise ConfigError("could not serve by handle_request(): user is set, which only workers of a pool become")
        if self.companion is not None:
            raise RuntimeError("handle_request() needs a listener, and a companion has none")
        super().handle_one()

    def check_companions(self) -> None:
        checked(self.server)

    def companions(self) -> tuple[CompanionSpec, ...]:
        """Return what the master starts. Raises ConfigError."""
        return tuple(
            CompanionSpec(each.name, each.interval, partial(self._accompany, each)) for each in checked(self.server)
        )

    def _accompany(self, declared: Declared, birth: Birth, master: Master, row: memoryview) -> int:
        """Run a companion in its new process. Return its exit status."""
        assert self.supervisor is not None
        server = self.server
        self.birth = birth
        self.counting.leave(birth)
        self.leave_metrics_listener()
        for sock in self.sockets():
            sock.close()
        os.environ.pop(SLOT_VARIABLE, None)  # of a worker that started this service
        setting = InForce(server)
        title = f"prefork: companion {declared.name}"
        terms = CompanionTerms(
            declared.name, partial(declared.function, server), declared.interval, declared.timeout,
            setting.graceful_timeout,
            measured=setting.metrics_address is not None or setting.max_memory is not None,
            set_title=lambda what: setproctitle.setproctitle(f"{title} {what}".rstrip()),
            nudge=self.supervisor.nudge,
        )  # fmt: skip
        self.companion = Companion(terms, birth, master, row)
        return self.companion.run()
