"""Which modules have mutants, and which tests are to kill those of each.

A table to be kept when files move: the module's file, its unit tests, then the process and fault tests that know it
best. Whoever adds a test for one of them adds it here. The unit tests of a module are one run, those that fail soonest
first; each further file is a run of its own, and the quickest is first whatever stands here.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Module:
    """Paths are from the root; tests are named as below tests/, without `test_` and `.py`.

    `unit` is empty where only processes tell, as of a pool that is served; such a module is in no sample of unit tests.
    """

    path: str
    unit: tuple[str, ...]
    further: tuple[str, ...]

    @property
    def stages(self) -> dict[str, list[tuple[str, ...]]]:
        """The test runs of each stage."""
        return {
            "unit": [tuple(_file(f"unit/{name}") for name in self.unit)] if self.unit else [],
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
    "effects": Module("prefork/settings/effects.py", ("effects", "other_servers"), ("process/check",)),
    "in_force": Module("prefork/settings/in_force.py", ("in_force", "kept_paths"), ("process/run",)),
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
    "networks": Module("prefork/sockets/networks.py", ("admission", "proxy_protocol"), ("process/admission",)),
    "tls": Module("prefork/sockets/tls.py", ("tls_dates",), ("process/tls_settings", "process/tls")),
    "connection_table": Module("workers/connection_table.py", ("connection_table",), ("process/connection_limits",)),
    "socket_options": Module("prefork/sockets/options.py", ("options",), ("process/socket_options",)),
    "admission": Module("workers/admission.py", ("admission",), ("process/admission",)),
    "proxy_protocol": Module("workers/proxy_protocol.py", ("proxy_protocol",), ("process/proxy_protocol",)),
    "cut_datagrams": Module("workers/cut_datagrams.py", ("cut_datagrams",), ("process/datagrams_cut",)),
    "proxied_datagrams": Module("workers/proxied_datagrams.py", ("proxied_datagrams",), ("process/proxied_datagrams",)),
    "fixed": Module(
        "prefork/reload/fixed.py", ("fixed", "rehearsal"), ("process/reload_settings", "process/peer_affinity")
    ),
    "check_affinity": Module("prefork/settings/affinity.py", ("affinity",), ("process/peer_affinity",)),
    "affinity": Module("prefork/sockets/affinity.py", ("affinity",), ("process/peer_affinity",)),
    "recent_peers": Module("workers/recent_peers.py", ("recent_peers", "wildcard"), ("process/datagram_answers",)),
    "wildcard": Module("prefork/sockets/wildcard.py", ("wildcard",), ("process/datagram_answers",)),
    "handlers": Module("prefork/settings/handlers.py", ("handler_checks", "handlers", "companions"), ()),
    "ownership": Module(
        "prefork/sockets/ownership.py",
        ("ownership", "listener", "control_access"),
        ("process/socket_access", "process/another_user", "faults/unix_paths"),
    ),
    "systemd": Module("prefork/systemd.py", ("systemd",), ("process/systemd", "faults/manager")),
    "at_import": Module("prefork/surroundings/at_import.py", ("surroundings",), ("faults/surroundings",)),
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
    "connections": Module(
        "metrics/connections.py", ("board", "collector", "connections_shown"), ("process/connection_limits",)
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
    "accompanied": Module("prefork/accompanied.py", (), ("process/companions", "process/check")),
    "check": Module("prefork/cli/check.py", (), ("process/check", "process/removing")),
    "config": Module("prefork/cli/config.py", ("config", "cli"), ("process/run",)),
    "ctl": Module("prefork/cli/ctl.py", ("cli",), ("process/control", "process/control_changes")),
    "dry_run": Module("prefork/cli/dry_run.py", ("cli", "config"), ("process/check", "process/removing")),
    "findings": Module("prefork/cli/findings.py", (), ("process/check",)),
    "main": Module("prefork/cli/main.py", ("cli", "config"), ("process/run",)),
    "options": Module("prefork/cli/options.py", ("cli", "config"), ("process/run",)),
    "pages": Module("prefork/cli/pages.py", ("cli", "config"), ("process/run",)),
    "run": Module("prefork/cli/run.py", (), ("process/run", "process/log_operation")),
    "single": Module("prefork/cli/single.py", (), ("process/single",)),
    "targets": Module("prefork/cli/targets.py", ("cli", "launch", "config"), ("process/run", "process/check")),
    "top": Module("prefork/cli/top.py", ("cli",), ("process/top",)),
    "commands": Module("prefork/commands.py", ("commands", "cli", "verbs"), ("process/control", "process/pool_limits")),
    "control_facts": Module("prefork/control/facts.py", ("control_simulated",), ("process/control",)),
    "client": Module("prefork/control/client.py", ("control_server",), ("process/control", "process/top")),
    "protocol": Module(
        "prefork/control/protocol.py",
        ("protocol", "control_simulated", "control_server"),
        ("process/control", "faults/control"),
    ),
    "render": Module(
        "prefork/control/render.py",
        ("control_simulated", "companions", "top_screen", "top_rows"),
        ("process/control", "process/top"),
    ),
    "report": Module(
        "prefork/control/report.py", ("control_simulated", "companions"), ("process/control", "process/top")
    ),
    "counting": Module(
        "prefork/supervised/counting.py", (), ("process/server", "process/composition", "process/metrics_move")
    ),
    "errors": Module("prefork/errors.py", ("cli", "sources"), ("process/run",)),
    "examples": Module("prefork/examples.py", (), ("process/documentation_examples", "process/unix_http")),
    "exporter_child": Module(
        "prefork/exporter/child.py", ("exporter_child",), ("process/exporter", "faults/metrics_endpoint")
    ),
    "holder_child": Module("prefork/holder/child.py", ("holder_child",), ("process/held",)),
    "kept_queues": Module("prefork/master/kept_queues.py", ("kept_queues", "holder_child"), ("process/held",)),
    "restarts": Module("prefork/master/restarts.py", ("holder_child", "exporter_child"), ("process/exporter",)),
    "exporter": Module("prefork/exporter/server.py", (), ("process/exporter", "faults/metrics_endpoint")),
    "request_handlers": Module("prefork/handlers.py", ("handlers", "socket_files", "loop"), ("process/server",)),
    "own": Module("prefork/inheritance/own.py", (), ("process/names_of_the_program", "process/precedence")),
    "precedence": Module(
        "prefork/inheritance/precedence.py",
        (),
        ("process/precedence", "process/own_ways", "process/over_the_standard_library"),
    ),
    "standard_classes": Module(
        "prefork/inheritance/standard_classes.py", (), ("process/over_the_standard_library", "process/precedence")
    ),
    "listening": Module(
        "prefork/listening.py",
        ("listening",),
        ("process/over_the_standard_library", "process/reload_listeners", "process/tls"),
    ),
    "log_formats": Module("prefork/log_formats.py", ("log_formats",), ("process/logs",)),
    "logs": Module("prefork/logs.py", ("cli", "config"), ("process/log_operation", "faults/logs")),
    "clock": Module("prefork/master/clock.py", ("clock", "simulation", "simulated_reloads"), ("faults/stopped",)),
    "gauges": Module("prefork/master/gauges.py", (), ("process/exporter", "process/pool_limits")),
    "log_drops": Module(
        "prefork/master/log_drops.py", ("simulation", "control_simulated"), ("process/log_operation", "faults/logs")
    ),
    "parting": Module("prefork/master/parting.py", (), ("process/worker_troubles", "process/ending")),
    "path_watch": Module("prefork/master/path_watch.py", ("path_watch", "simulation"), ("process/reload_listeners",)),
    "reaping": Module(
        "prefork/master/reaping.py",
        (),
        ("process/reaping_program", "process/children"),
    ),
    "staying": Module("prefork/master/staying.py", ("staying", "simulation"), ("process/draining",)),
    "views": Module("prefork/master/views.py", (), ("process/pool",)),
    "mixins": Module("prefork/mixins.py", (), ("process/server", "process/server_limits", "process/composition")),
    "pool": Module("prefork/pool.py", (), ("process/pool", "process/pool_master", "process/fit")),
    "pool_settings": Module("prefork/pool_settings.py", ("fields", "config", "cli"), ("process/run",)),
    "process": Module(
        "prefork/process.py", (), ("process/working_directory", "process/log_operation", "process/pool_master")
    ),
    "left_over": Module(
        "prefork/reload/left_over.py", ("reloading", "simulated_reloads"), ("process/reload_processes",)
    ),
    "program": Module("prefork/reload/program.py", (), ("process/reload", "process/takeover")),
    "server": Module("prefork/server.py", (), ("process/server", "process/serving")),
    "serving_loop": Module(
        "prefork/serving_loop.py", (), ("process/serving", "process/server", "process/handle_request")
    ),
    "serving_pool": Module("prefork/serving_pool.py", (), ("process/pool", "process/reload", "process/pool_master")),
    "cpus": Module("prefork/settings/cpus.py", (), ("process/pool_limits",)),
    "fields": Module("prefork/settings/fields.py", ("fields", "sources", "config", "cli"), ("process/run",)),
    "sources": Module("prefork/settings/sources.py", ("sources", "launch"), ("process/run",)),
    "units": Module("prefork/settings/units.py", ("config", "sources", "fields"), ("process/run",)),
    "bindable": Module("prefork/sockets/bindable.py", ("addresses",), ()),
    "addresses": Module("prefork/sockets/addresses.py", ("addresses", "cli"), ("process/run", "process/unix_http")),
    "mending": Module("prefork/sockets/mending.py", ("accept_queue",), ("process/shut_listeners",)),
    "shared": Module(
        "prefork/sockets/shared.py",
        ("listener", "accept_queue"),
        ("process/draining", "faults/draining", "process/datagram_answers"),
    ),
    "supervised": Module(
        "prefork/supervised/state.py", (), ("process/serving", "process/children", "process/exporter")
    ),
    "forked": Module("prefork/supervised/forked.py", (), ("process/server", "process/children", "process/composition")),
    "takeover": Module("prefork/takeover.py", (), ("process/takeover", "faults/reload")),
    "testing": Module("prefork/testing.py", (), ("process/testing",)),
    "top_http": Module("prefork/top/http.py", ("top_http",), ("process/top",)),
    "live": Module("prefork/top/live.py", (), ("process/top",)),
    "rates": Module("prefork/top/rates.py", ("top_rates", "top_screen"), ("process/top",)),
    "rows": Module("prefork/top/rows.py", ("top_rows", "top_screen"), ("process/top",)),
    "scrape": Module("prefork/top/scrape.py", ("top_scrape",), ("process/top",)),
    "screen": Module("prefork/top/screen.py", ("top_screen", "top_scrape"), ("process/top",)),
    "top_sources": Module("prefork/top/sources.py", ("top_sources", "cli"), ("process/top",)),
    "plain_accept": Module("workers/plain_accept.py", ("accepting",), ()),
    "accepting": Module("workers/accepting.py", ("accepting", "lanes", "loop"), ("process/pool", "faults/accept_path")),
    "access_log": Module("workers/access_log.py", ("access_log", "log_templates", "log_formats"), ("process/logs",)),
    "definitions": Module(
        "workers/definitions.py", ("definitions", "loop"), ("process/own_ways", "process/precedence")
    ),
    "descriptor_limit": Module("workers/descriptor_limit.py", (), ("faults/descriptor_limit",)),
    "handshake": Module("workers/handshake.py", ("handshake", "loop"), ("process/tls",)),
    "hangup": Module("workers/hangup.py", ("hangup", "loop"), ("process/draining", "process/tls")),
    "holding": Module("workers/holding.py", ("signals",), ("faults/signals",)),
    "identity": Module("workers/identity.py", ("identity",), ("process/hostile_program",)),
    "latch": Module("workers/latch.py", ("latch", "companion"), ("process/companions",)),
    "lazy_imports": Module("workers/lazy_imports.py", (), ("process/lazy_imports",)),
    "limits": Module("workers/limits.py", ("limits", "loop"), ("process/pool_limits",)),
    "log_handing": Module("workers/log_handing.py", ("log_handing",), ("process/log_of_another_user",)),
    "log_locks": Module("workers/log_locks.py", (), ("faults/logs", "process/worker_troubles")),
    "open_lanes": Module("workers/open_lanes.py", ("open_lanes", "loop"), ("process/threads_of_a_pool",)),
    "polling": Module("workers/polling.py", (), ("process/pool", "faults/lost_wakeup")),
    "sinks": Module(
        "workers/sinks.py",
        (),
        ("process/log_operation", "process/log_of_another_user", "faults/logs"),
    ),
    "socket_files": Module(
        "workers/socket_files.py", ("socket_files", "handlers"), ("process/over_the_standard_library",)
    ),
    "strays": Module("workers/strays.py", ("loop", "lanes", "companion"), ("faults/user_forks",)),
    "thread_body": Module("workers/thread_body.py", ("contexts", "lanes"), ("process/composition",)),
    "threads": Module("workers/threads.py", ("threads", "contexts"), ("process/threads_of_a_pool",)),
    "wakeup": Module("workers/wakeup.py", ("wakeup", "loop"), ("faults/lost_wakeup", "process/shut_sockets")),
    "exposition": Module(
        "metrics/application/exposition.py", ("exposition",), ("process/user_metrics", "process/prometheus")
    ),
    "hook": Module("metrics/application/hook.py", (), ("process/user_metrics", "process/imports")),
    "series": Module("metrics/application/series.py", ("application",), ("process/user_metrics",)),
    "values": Module("metrics/application/values.py", ("application",), ("process/user_metrics", "process/prometheus")),
    "collector": Module("metrics/collector.py", ("collector",), ("process/exporter", "process/metrics_move")),
    "facts": Module("metrics/facts.py", ("facts", "exits"), ("process/metrics_move",)),
    "feed": Module("metrics/feed.py", ("feed", "exporter_child"), ("process/exporter", "faults/metrics_endpoint")),
    "histogram": Module("metrics/histogram.py", ("histogram", "scoreboard"), ("process/exporter",)),
    "kernel": Module("metrics/kernel.py", ("kernel", "accept_queue"), ("process/exporter",)),
    "late_imports": Module("metrics/late_imports.py", (), ("process/imports",)),
    "loggers": Module("metrics/loggers.py", ("loggers",), ("faults/logs", "process/logs")),
    "accepted": Module("prefork/sockets/accepted.py", ("socket_files", "receiving"), ("process/pool",)),
    "receiving": Module("prefork/sockets/receiving.py", ("receiving",), ("process/datagram_answers",)),
    "destinations": Module(
        "workers/destinations.py", ("destinations", "identity"), ("process/log_operation", "faults/logs")
    ),
    "log_templates": Module("workers/log_templates.py", ("log_templates",), ("process/logs", "faults/logs")),
    "straight": Module("workers/straight.py", ("straight", "loop"), ("process/pool", "process/own_ways")),
    "summed": Module("metrics/application/summed.py", ("summed", "exposition"), ("process/user_metrics",)),
    "sums": Module("metrics/application/sums.py", ("sums", "application", "collector"), ("process/user_metrics",)),
    "thread_pool": Module(
        "workers/thread_pool.py", ("thread_pool", "threads"), ("process/threads_of_a_pool", "process/composition")
    ),
    "thread_state": Module(
        "workers/thread_state.py", ("thread_state", "threads"), ("process/threads_of_a_pool", "process/composition")
    ),
    "privileges": Module("workers/privileges.py", ("privileges",), ("process/privileges", "faults/privileges")),
    "users": Module("prefork/settings/users.py", ("users",), ("process/privileges",)),
    "service": Module("prefork/master/service.py", ("spawner", "supervisor"), ("process/several_listeners",)),
    "lanes_beside": Module("workers/lanes_beside.py", ("also",), ("process/several_listeners",)),
    "also": Module("prefork/settings/also.py", ("also",), ("process/several_listeners",)),
    "holder_connections": Module("prefork/holder/connections.py", ("holder_connections",), ("process/holder",)),
    "holder_server": Module("prefork/holder/server.py", (), ("process/holder",)),
    "kept_cells": Module("workers/kept_cells.py", ("kept_cells", "connection_table"), ("process/kept_limits",)),
    "kept": Module("workers/kept.py", ("kept",), ("process/pool",)),
    "keeping": Module("workers/keeping.py", ("keeping",), ("process/pool",)),
    "lingering": Module("workers/lingering.py", ("keeping",), ("process/pool",)),
    "stays": Module("workers/stays.py", ("keeping",), ("process/pool",)),
    "stay": Module("workers/stay.py", ("stay", "keepalive"), ("process/pool",)),
    "keepalive": Module("prefork/keepalive.py", ("keepalive",), ("process/server",)),
    "http_exchange": Module("workers/http_exchange.py", ("http_exchange",), ("process/server",)),
    "http_chunks": Module("workers/http_chunks.py", ("http_chunks", "http_exchange"), ("process/server",)),
    "idle_waits": Module("workers/idle_waits.py", ("keepalive", "looped"), ("process/kept_in_loops",)),
    "looped": Module("workers/looped.py", ("looped",), ("process/kept_in_loops",)),
}
