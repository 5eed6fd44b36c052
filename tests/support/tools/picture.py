"""A picture of a scrape, in text: the one that metrics/README.md shows.

python -m tests.support.tools.picture ADDRESS        host:port or the path of a Unix socket, of a service that runs
"""

import re
import sys
from itertools import pairwise

from tests.support.clients.scraping import get, total

WIDTH = 40  # of the longest bar


def picture(found: dict[str, float]) -> str:
    """From the samples of one scrape; only what is in it."""
    workers = {state: _one(found, "prefork_workers", f'state="{state}"') for state in ("idle", "busy")}
    outcomes = ("ok", "error", "timeout", "lost")
    ended = {outcome: _one(found, "prefork_requests_total", f'outcome="{outcome}"') for outcome in outcomes}
    running = _one(found, "prefork_requests_in_flight")
    length, limit = (_one(found, f"prefork_listen_queue_{what}") for what in ("length", "limit"))
    lines = [
        "clients ──▶ queue of the kernel ──▶ workers ──▶ your handler",
        f"            {length:g} of {limit:g}".ljust(37)
        + ", ".join(f"{number:g} {state}" for state, number in workers.items()),
        "",
        f"accepted {total(found, 'prefork_connections_accepted_total'):g} = "
        + " + ".join(f"{number:g} {end}" for end, number in [*ended.items(), ("running", running)]),
        f"saturated for {found['prefork_saturated_seconds_total']:.1f} s; "
        f"the oldest request runs for {found['prefork_oldest_request_age_seconds']:.1f} s",
        "",
        *_bars(found, "prefork_request_duration_seconds"),
    ]
    return "\n".join(lines)


def _one(found: dict[str, float], name: str, label: str = "") -> float:
    return next(value for sample, value in found.items() if sample.partition("{")[0] == name and label in sample)


def _bars(found: dict[str, float], name: str) -> list[str]:
    """A bar for each bucket up to the last that is not empty."""
    buckets = [(0.0, 0.0)]
    for sample, value in found.items():
        if sample.startswith(name + "_bucket") and (le := re.search('le="([^"]+)"', sample)):
            buckets.append((float(le[1]), value))
    rows = [(bound, count - before) for (_, before), (bound, count) in pairwise(buckets)]
    while rows and not rows[-1][1]:
        rows.pop()
    most = max((count for _, count in rows), default=1)
    bars = (f"{'█' * round(WIDTH * count / most):{WIDTH}} {count:g}" for _, count in rows)
    return [name, *(f"  ≤ {bound:>6g} s  {bar}" for (bound, _), bar in zip(rows, bars, strict=True))]


if __name__ == "__main__":
    host, _, port = sys.argv[1].rpartition(":")
    print(picture(get((host, int(port)) if host else sys.argv[1]).samples))
