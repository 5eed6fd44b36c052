"""Which modules have mutants, and which tests are to kill those of each.

A table to be kept when files move: the module's file, its unit tests, then the process and fault tests that know it
best, the quickest first. Whoever adds a test for one of them adds it here.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Module:
    """Paths are from the root; tests are named as below tests/, without `test_` and `.py`."""

    path: str
    unit: tuple[str, ...]
    further: tuple[str, ...]

    @property
    def stages(self) -> dict[str, list[str]]:
        return {"unit": list(map(_file, self.unit)), "further": list(map(_file, self.further))}


def _file(name: str) -> str:
    folder, _, rest = name.partition("/")
    return f"tests/{folder}/test_{rest}.py"


MODULES = {
    "policy": Module(
        "prefork/master/policy.py",
        ("unit/policy", "unit/simulation", "unit/simulated_reloads"),
        ("process/pool_limits", "process/draining", "faults/boot"),
    ),
    "supervisor": Module(
        "prefork/master/supervisor.py",
        ("unit/supervisor", "unit/waiting", "unit/reloading", "unit/simulation", "unit/simulated_reloads"),
        ("process/pool", "process/pool_master", "process/draining", "process/metrics_move", "faults/boot"),
    ),
    "children": Module(
        "prefork/master/children.py",
        ("unit/children", "unit/spawner", "unit/simulation"),
        ("process/children", "process/pool", "process/metrics_move", "faults/user_forks"),
    ),
    "processes": Module(
        "prefork/master/processes.py", ("unit/children",), ("process/children", "process/pool", "faults/user_forks")
    ),
    "accept_queue": Module(
        "prefork/master/accept_queue.py",
        ("unit/accept_queue", "unit/simulation"),
        ("process/draining", "process/systemd", "faults/draining"),
    ),
    "generations": Module(
        "prefork/reload/generations.py",
        ("unit/reloading", "unit/simulated_reloads"),
        ("process/reload", "process/control", "faults/reload_orders"),
    ),
    "reloading": Module(
        "prefork/reload/reloading.py",
        ("unit/reloading", "unit/simulated_reloads"),
        ("process/reload", "process/control", "faults/reload_orders"),
    ),
    "handover": Module(
        "prefork/reload/handover.py",
        ("unit/handover", "unit/reloading"),
        ("process/reload", "process/reload_settings", "process/control_changes", "faults/manager"),
    ),
    "listener": Module(
        "prefork/sockets/listener.py",
        ("unit/listener", "unit/addresses"),
        ("process/unix_service", "process/systemd", "process/draining", "faults/draining", "faults/unix_paths"),
    ),
    "systemd": Module("prefork/systemd.py", ("unit/systemd",), ("process/systemd", "faults/manager")),
    "notify": Module("prefork/master/notify.py", ("unit/systemd",), ("process/systemd", "faults/manager")),
    "control": Module(
        "prefork/control/server.py",
        ("unit/control_server", "unit/control_simulated", "unit/protocol"),
        ("process/control", "process/socket_access", "process/control_changes", "faults/control"),
    ),
    "access": Module(
        "prefork/control/access.py",
        ("unit/control_access", "unit/control_simulated"),
        ("process/control", "process/socket_access", "process/control_changes", "faults/control"),
    ),
    "loop": Module(
        "workers/loop.py",
        ("unit/loop", "unit/limits"),
        ("process/pool", "process/pool_limits", "process/draining", "process/ending", "faults/accept_descriptors"),
    ),
    "lanes": Module(
        "workers/lanes.py", ("unit/lanes", "unit/loop"), ("process/pool", "process/composition", "process/server")
    ),
    "board": Module("metrics/board.py", ("unit/layout", "unit/board", "unit/handover"), ("process/metrics_move",)),
    "scoreboard": Module(
        "metrics/scoreboard.py",
        ("unit/layout", "unit/scoreboard", "unit/lanes", "unit/histogram"),
        ("process/metrics_move",),
    ),
    "application": Module(
        "metrics/application/region.py",
        ("unit/layout", "unit/application"),
        ("process/user_metrics", "process/prometheus"),
    ),
}
