"""The place of a worker among those that wait for the listener.

Runs in a worker. The kernel wakes exclusive waiters in the order of their registration (EPOLLEXCLUSIVE, epoll_ctl(2)),
and passes over those that are not waiting at the moment. A worker that serves by itself keeps its place, and so one
cache stays warm. With threads it would take every request, since it waits again at once: so it has two places. The one
in front it keeps, and waits there only while it has no request; at the other it goes to the back with each.
"""

import select

AT_ANY_TIME = select.EPOLLIN | select.EPOLLEXCLUSIVE
AT_EACH_CHANGE = AT_ANY_TIME | select.EPOLLET  # wakes one thread; at any time, one would wake the next in vain


def wait_for(epoll: select.epoll, listener: int, when: int = AT_ANY_TIME) -> None:
    """Become the last of those that wait for it. Raises OSError. What is queued already ends the next wait."""
    epoll.register(listener, when)


def go_to_the_back(epoll: select.epoll, listener: int, when: int = AT_ANY_TIME) -> bool:
    """Let the others go first from now on: of 60 slow requests each of four workers gets 15, and not one of them 60.

    Return False if the kernel has no memory for it; then this process does not wait for the listener at all.
    """
    try:
        epoll.unregister(listener)
    except (OSError, ValueError):  # it was refused before, or the listener has been closed
        pass
    try:
        wait_for(epoll, listener, when)
    except FileExistsError:  # another thread was faster
        pass
    except (OSError, ValueError):
        return False
    return True
