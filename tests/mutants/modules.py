"""Which modules have mutants, and which tests are to kill those of each.

A table to be kept when files move: the module's file, its unit tests, then the process and fault tests that know it
best. Whoever adds a test for one of them adds it here. The unit tests of a module are one run, those that fail soonest
first; each further file is a run of its own, and the quickest is first whatever stands here.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Module:
    """Paths are from the root; tests are named as below tests/, without `test_` and `.py`."""

    path: str
    unit: tuple[str, ...]
    further: tuple[str, ...]

    @property
    def stages(self) -> dict[str, list[tuple[str, ...]]]:
        """The test runs of each stage."""
        return {
            "unit": [tuple(_file(f"unit/{name}") for name in self.unit)],
            "further": [(_file(name),) for name in self.further],
        }


def _file(name: str) -> str:
    folder, _, rest = name.partition("/")
    return f"tests/{folder}/test_{rest}.py"


MODULES = {
    "policy": Module(
        "prefork/master/policy.py",
        ("policy", "simulation", "simulated_reloads"),
        ("process/pool_limits", "process/draining", "faults/boot"),
    ),
    "supervisor": Module(
        "prefork/master/supervisor.py",
        ("supervisor", "reloading", "companions", "simulation", "simulated_reloads"),
        ("process/pool", "process/pool_master", "process/draining", "process/metrics_move", "faults/boot"),
    ),
    "children": Module(
        "prefork/master/children.py",
        ("children", "spawner", "signalling", "tasks", "simulation"),
        ("process/children", "process/metrics_move", "faults/user_forks"),
    ),
    "processes": Module(
        "prefork/master/processes.py",
        ("processes", "children", "signalling"),
        ("process/children", "process/pool", "faults/user_forks"),
    ),
    "exits": Module(
        "prefork/master/exits.py",
        ("exits", "tasks", "simulation"),
        ("process/metrics_move", "process/pool_limits", "faults/boot"),
    ),
    "guard": Module(
        "prefork/master/guard.py",
        ("guard", "supervisor", "tasks", "exits"),
        ("process/pool_master", "faults/injection"),
    ),
    "tasks": Module(
        "prefork/master/tasks.py",
        ("tasks", "simulation"),
        ("process/children", "faults/user_forks", "process/exporter"),
    ),
    "spawner": Module(
        "prefork/master/spawner.py", ("spawner", "simulation"), ("process/pool", "process/metrics_move", "faults/boot")
    ),
    "signalling": Module(
        "prefork/master/signalling.py",
        ("signalling", "supervisor", "simulation"),
        ("process/metrics_move", "process/pool_limits", "faults/stopped"),
    ),
    "waiting": Module(
        "prefork/master/waiting.py",
        ("waiting", "tasks", "supervisor", "simulation"),
        ("process/pool", "process/systemd", "faults/boot"),
    ),
    "notify": Module("prefork/master/notify.py", ("systemd", "supervisor"), ("process/systemd", "faults/manager")),
    "accept_queue": Module(
        "prefork/master/accept_queue.py",
        ("accept_queue", "simulation"),
        ("process/draining", "process/systemd", "faults/draining"),
    ),
    "queue_watch": Module(
        "prefork/master/queue_watch.py",
        ("queue_watch", "policy", "simulation"),
        ("process/pool_limits", "faults/lost_wakeup"),
    ),
    "overload": Module("prefork/master/overload.py", ("overload",), ("process/pool_limits",)),
    "stacks": Module("prefork/master/stacks.py", ("stacks",), ("process/logs",)),
    "peers": Module("prefork/sockets/peers.py", ("peers",), ("process/control", "process/unix_service")),
    "effects": Module("prefork/settings/effects.py", ("effects",), ("process/check",)),
    "companions": Module(
        "prefork/master/companions.py", ("companion_table", "companions", "simulation"), ("process/companions",)
    ),
    "reloading": Module(
        "prefork/reload/reloading.py",
        ("rehearsal", "reloading", "simulated_reloads"),
        ("process/reload", "process/control", "faults/reload_orders"),
    ),
    "generations": Module(
        "prefork/reload/generations.py",
        ("reloading", "simulated_reloads"),
        ("process/reload", "process/control", "faults/reload_orders"),
    ),
    "handover": Module(
        "prefork/reload/handover.py",
        ("handover", "reloading"),
        ("process/reload", "process/reload_settings", "process/control_changes", "faults/manager"),
    ),
    "start_context": Module(
        "prefork/reload/start_context.py", ("start_context",), ("process/reload", "process/working_directory")
    ),
    "degraded": Module(
        "prefork/reload/degraded.py",
        ("degraded", "reloading", "simulated_reloads"),
        ("process/reload", "process/control", "faults/reload"),
    ),
    "new_image": Module(
        "prefork/reload/new_image.py",
        (
            "new_image",
            "reloading",
        ),
        ("process/reload", "process/systemd", "faults/reload"),
    ),
    "rehearsal": Module(
        "prefork/reload/rehearsal.py",
        (
            "rehearsal",
            "reloading",
        ),
        ("process/reload", "process/check", "process/reload_settings"),
    ),
    "still_held": Module("prefork/reload/still_held.py", ("still_held", "new_image"), ("process/second_port",)),
    "on_change": Module("prefork/reload/on_change.py", ("on_change",), ("process/reload_on_change",)),
    "listener": Module(
        "prefork/sockets/listener.py",
        ("listener", "addresses", "accept_queue"),
        (
            "process/unix_service",
            "process/systemd",
            "process/draining",
            "process/check",
            "faults/draining",
            "faults/unix_paths",
        ),
    ),
    "kept_paths": Module("prefork/sockets/kept_paths.py", ("kept_paths",), ("process/removing",)),
    "wildcard": Module("prefork/sockets/wildcard.py", ("wildcard",), ("process/datagram_answers",)),
    "handlers": Module("prefork/settings/handlers.py", ("handler_checks", "handlers", "companions"), ()),
    "ownership": Module(
        "prefork/sockets/ownership.py",
        ("ownership", "listener", "control_access"),
        ("process/socket_access", "process/another_user", "faults/unix_paths"),
    ),
    "systemd": Module("prefork/systemd.py", ("systemd",), ("process/systemd", "faults/manager")),
    "inherited": Module("prefork/surroundings/inherited.py", ("surroundings",), ("faults/surroundings",)),
    "leading": Module("prefork/surroundings/leading.py", ("leading",), ("process/reload_state",)),
    "attributes": Module("prefork/reload/attributes.py", ("attributes",), ("process/reload_state",)),
    "taken": Module("prefork/surroundings/taken.py", ("surroundings",), ("faults/surroundings", "faults/signals")),
    "early_signals": Module("prefork/surroundings/early_signals.py", ("surroundings",), ("faults/surroundings",)),
    "room": Module("prefork/surroundings/room.py", ("surroundings", "room"), ("faults/room",)),
    "declared": Module("prefork/settings/companions.py", ("companions",), ("process/companions", "process/check")),
    "control": Module(
        "prefork/control/server.py",
        ("control_server", "control_simulated", "protocol"),
        ("process/control", "process/socket_access", "process/control_changes", "faults/control"),
    ),
    "connection": Module(
        "prefork/control/connection.py",
        ("connection", "control_server", "control_simulated", "protocol"),
        ("process/control", "process/control_changes", "faults/control"),
    ),
    "verbs": Module(
        "prefork/control/verbs.py",
        ("verbs", "control_server", "control_simulated", "protocol"),
        ("process/control", "process/control_changes", "process/draining"),
    ),
    "access": Module(
        "prefork/control/access.py",
        ("control_access", "control_simulated"),
        ("process/control", "process/socket_access", "process/control_changes", "faults/control"),
    ),
    "launch": Module(
        "prefork/cli/launch.py",
        ("launch", "sources", "config", "cli"),
        ("process/run", "process/check", "process/working_directory"),
    ),
    "loop": Module(
        "workers/loop.py",
        ("loop", "limits"),
        ("process/pool", "process/pool_limits", "process/draining", "process/ending", "faults/accept_descriptors"),
    ),
    "lanes": Module(
        "workers/lanes.py", ("lanes", "contexts", "loop"), ("process/pool", "process/composition", "process/server")
    ),
    "contexts": Module("workers/contexts.py", ("contexts", "lanes"), ("process/server", "process/composition")),
    "companion": Module("workers/companion.py", ("companion", "companions"), ("process/companions",)),
    "flushing": Module(
        "workers/flushing.py",
        ("flushing", "bootstrap", "loggers"),
        ("process/worker_troubles", "process/log_operation", "faults/logs"),
    ),
    "ending": Module(
        "workers/ending.py",
        ("ending", "loop"),
        ("process/ending", "process/worker_end", "process/worker_end_exporters"),
    ),
    "signals": Module(
        "workers/signals.py",
        ("signals", "dispositions", "commands", "loop"),
        ("process/pool_master", "process/serving", "process/pool", "faults/signals", "faults/user_forks"),
    ),
    "bootstrap": Module(
        "workers/bootstrap.py",
        ("bootstrap", "spawner", "loop"),
        ("process/children", "process/pool", "process/worker_troubles", "faults/boot", "faults/master_dies"),
    ),
    "user_forks": Module(
        "workers/user_forks.py", ("user_forks", "loop"), ("faults/user_forks", "process/worker_troubles")
    ),
    "board": Module(
        "metrics/board.py", ("layout", "board", "handover", "exits", "collector"), ("process/metrics_move",)
    ),
    "scoreboard": Module(
        "metrics/scoreboard.py", ("layout", "scoreboard", "lanes", "histogram"), ("process/metrics_move",)
    ),
    "companion_table": Module(
        "metrics/companions.py", ("companion_table", "companions", "collector"), ("process/companions",)
    ),
    "application": Module(
        "metrics/application/region.py", ("layout", "application"), ("process/user_metrics", "process/prometheus")
    ),
}
