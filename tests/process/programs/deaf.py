"""A release that, after its rehearsal, is never imported to the end, and catches whatever is raised in it meanwhile."""

import time

from prefork import rehearsing
from tests.support.programs.served import tell

if not rehearsing():
    tell("deaf")
while not rehearsing():
    try:
        time.sleep(60)
    except:  # noqa: E722  # SystemExit as well, as such programs do
        pass
