"""Users that nobody else is, how a service becomes one, and what the kernel says of a process that has become one."""

import re
import sys
from pathlib import Path

IN_NAMESPACE = Path(__file__).parents[1] / "programs" / "in_namespace.py"


def namespace(uids: str, gids: str) -> tuple[str, ...]:
    """What goes before a command line, as root: it is root of a user namespace that has these, by lines of its maps."""
    return sys.executable, "-I", "-S", str(IN_NAMESPACE), uids, gids


def become(user: int, group: int | None = None) -> tuple[str, ...]:
    """What goes before a command line, as root: that user may read what the interpreter is made of, wherever it lies,
    and nothing else that is not his."""
    return (
        "setpriv", f"--reuid={user}", f"--regid={user if group is None else group}", "--clear-groups",
        "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search",
    )  # fmt: skip


def dropped(user: int, group: int, groups: str = "", umask: str = "0022", no_new: int = 0) -> str:
    """What /proc says of a process that has become this user."""
    none = "; ".join(f"Cap{which}: {0:016x}" for which in ("Inh", "Prm", "Eff", "Amb"))
    ids = f"Uid: {' '.join([str(user)] * 4)}; Gid: {' '.join([str(group)] * 4)}; Groups: {groups or group}"
    return f"Umask: {umask}; {ids}; {none}; NoNewPrivs: {no_new}"


def seen(pid: int) -> str:
    """The same, of this process, by root."""
    wanted = re.compile(r"(Umask|Uid|Gid|Groups|Cap(Inh|Prm|Eff|Amb)|NoNewPrivs):")
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return "; ".join(" ".join(line.split()) for line in lines if wanted.match(line))
