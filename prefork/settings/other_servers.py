"""The words of other servers, and what they are here: settings of gunicorn, uWSGI, Net::Server and php-fpm.

Owns the table, and the end of a sentence about a name that is unknown. Must not read a value: no such name is ever
accepted. Loaded after a mistake only, in the process that finds it. deploy/moving.md tells the same at length.
"""

from collections.abc import Iterable, Mapping

from ..errors import nearest

__all__ = ["THEIR_HOOKS", "THEIR_SETTINGS", "WITHOUT_LIKE", "called_here"]

# By the name of ours, as options, variables and files have it. Dashes are underscores here.
_OF_THEIRS: Mapping[str, str] = {
    "bind": "b http http_socket socket host port ipv",
    "config": "c conf_file ini",
    "working_directory": "chdir directory",
    "log_level": "loglevel",
    "log_file": "errorlog error_logfile logto",
    "access_log": "accesslog access_logfile",
    "reload_on_change": "reload py_autoreload",
    "request_queue_size": "backlog listen",
    "socket_mode": "chmod_socket",
    "socket_owner": "chown_socket",
    "metrics": "stats stats_server statsd_host",
    "max_children": "w workers processes worker_processes max_servers numprocs",
    "min_children": "min_servers cheaper",
    "min_spare_children": "min_spare_servers",
    "max_spare_children": "max_spare_servers",
    "max_threads": "threads",
    "request_timeout": "t timeout harakiri request_terminate_timeout",
    "slow_request_timeout": "request_slowlog_timeout",
    "max_lifetime": "max_worker_lifetime workers_lifetime",
    "max_memory": "reload_on_rss reload_on_as evil_reload_on_rss workers_max_rss",
    "control": "master_fifo",
    "boot_timeout": "worker_boot_timeout",
    "graceful_timeout": "worker_reload_mercy reload_mercy worker_shutdown_timeout process_control_timeout stopwaitsecs",
    "keepalive_timeout": "keepalive keep_alive http_keepalive",
    "max_idle_connections": "worker_connections",
    "tcp_keepalive": "so_keepalive",
    "receive_buffer": "so_rcvbuf",
    "send_buffer": "so_sndbuf",
    "tls_certificate": "certfile ssl_certificate",
    "tls_key": "keyfile ssl_certificate_key",
    "tls_client_ca": "ca_certs",
    "tls_verify_client": "cert_reqs",
    "tls_minimum_version": "ssl_version",
    "allowed_clients": "allow cidr_allow",
    "denied_clients": "deny cidr_deny",
    "proxy_trusted": "proxy_protocol proxy_allow_ips proxy_allow_from",
    "user": "u uid",
    "group": "g gid",
}
THEIR_SETTINGS: Mapping[str, str] = {theirs: ours for ours, names in _OF_THEIRS.items() for theirs in names.split()}

_INIT = "whatever starts the service does that, as a systemd unit"
_HTTP = "prefork parses no HTTP"
_ALWAYS_LOADED = "modules are always loaded before the fork, and a reload takes new code all the same"
_ONE_LISTENER = "the workers share one listener, and the kernel wakes one of them"
_KINDS = "a pool has threads by max_threads, and keeps connections of a handler class with KeepAliveMixIn"
# What has no setting here, and why not.
WITHOUT_LIKE: Mapping[str, str] = {
    **dict.fromkeys(("d", "daemon", "daemonize", "background", "setsid"), _INIT),
    **dict.fromkeys(("pid", "pidfile", "pid_file", "chroot", "e", "env", "raw_env"), _INIT),
    **dict.fromkeys(("preload", "preload_app", "lazy_apps"), _ALWAYS_LOADED),
    **dict.fromkeys(("master", "die_on_term"), "there always is a master, which TERM drains"),
    **dict.fromkeys(("reuse_port", "thunder_lock", "serialize"), _ONE_LISTENER),
    **dict.fromkeys(("k", "worker_class"), _KINDS),
    **dict.fromkeys(("max_requests_jitter", "max_requests_delta"), "each worker takes up to a tenth fewer of itself"),
    **dict.fromkeys(("limit_request_line", "limit_request_fields", "forwarded_allow_ips"), _HTTP),
    **dict.fromkeys(("wsgi_file", "module", "callable", "pythonpath"), "the target is named as in app:Server"),
    **dict.fromkeys(("check_for_waiting", "check_for_dead", "check_for_spawn"), "deaths and saturation are events"),
    **dict.fromkeys(("mule", "spooler", "attach_daemon"), "a program has companions: prefork.every()"),
    "vacuum": "a Unix path is removed at the end",
    "worker_tmp_dir": "workers tell the master of themselves in shared memory",
    "access_logformat": "the lines of access_log have one form, or are JSON by --log-format json",
    "ciphers": "a server class has create_ssl_context()",
    "check_config": "the command is prefork check",
    "print_config": "the command is prefork config",
}  # fmt: skip
# Methods of a server's class.
THEIR_HOOKS: Mapping[str, str] = {
    "post_fork": "worker_started", "post_worker_init": "worker_started", "child_init_hook": "worker_started",
    "worker_exit": "worker_stopping", "child_finish_hook": "worker_stopping",
}  # fmt: skip


def called_here(word: str, known: Iterable[str], near: Iterable[str] | None = None) -> str:
    """Return what an unknown name is here, after a semicolon; or the known one that is nearest; or nothing.

    `near`: those that it may be misspelt for, if not all of them are allowed.
    """
    plain = {_plain(each): each for each in known}
    name = _plain(word)
    if (ours := plain.get(THEIR_SETTINGS.get(name, ""))) is not None:
        return f"; here it is {ours}"
    if name in WITHOUT_LIKE:
        return f"; nothing is like it: {WITHOUT_LIKE[name]}"
    return nearest(word, plain.values() if near is None else near)


def _plain(word: str) -> str:
    """Return an option, a variable or a key without what is around its name."""
    return word.removeprefix("PREFORK_").lstrip("-").replace("-", "_").lower()
