"""The number of CPUs that this process may use.

Runs in any process, once, when the classes are defined: the default size of a pool depends on it.
"""

import math
import os

__all__ = ["cgroup_quota", "usable_cpus"]


def usable_cpus() -> int:
    """Return the number of usable CPUs: the affinity mask, limited by the cgroup's CPU quota; at least 1."""
    try:
        affinity = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # not on every system; refused by a filter
        affinity = os.cpu_count() or 1
    try:
        membership = _text("/proc/self/cgroup")
    except OSError:
        return affinity
    quota = cgroup_quota(membership, "/sys/fs/cgroup")
    return affinity if quota is None else max(1, min(affinity, math.ceil(quota)))


def cgroup_quota(membership: str, root: str) -> float | None:
    """Return the CPUs that a cgroup (v2, or v1's cpu controller) and its ancestors allow; None without a limit.

    `membership` is the text of /proc/self/cgroup; see cgroups(7). In a container its path may lie outside the part that
    is mounted at `root`; missing ancestors set no limit.
    """
    quotas = []
    for line in membership.splitlines():
        number, controllers, path = line.split(":", 2)
        base = root if number == "0" else os.path.join(root, "cpu")
        if number == "0" or "cpu" in controllers.split(","):
            folder = os.path.join(base, path.strip("/"))
            while folder.startswith(base):
                quotas.append(_quota_of(folder.rstrip("/")))
                folder = os.path.dirname(folder.rstrip("/"))
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_of(folder: str) -> float | None:
    try:
        if os.path.exists(f"{folder}/cpu.max"):
            quota, period = _text(f"{folder}/cpu.max").split()
        else:
            quota = _text(f"{folder}/cpu.cfs_quota_us").strip()
            period = _text(f"{folder}/cpu.cfs_period_us").strip()
        return None if quota in ("max", "-1") else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _text(path: str) -> str:
    with open(path) as file:
        return file.read()
