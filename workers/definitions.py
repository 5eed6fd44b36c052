"""The nearest definition of a method of the program's server: the program's own, ours, or the standard library's.

Pure. Runs in any process.
"""

from typing import Any


def is_the_programs(server: Any, name: str) -> bool:
    """Return True if the program defines this method of its server, in a class or on the object."""
    if name in vars(server):
        return True
    return is_the_programs_class(next((cls for cls in type(server).__mro__ if name in vars(cls)), object))


def is_ours(cls: type) -> bool:
    return cls.__module__ == "prefork" or cls.__module__.startswith("prefork.")


def is_the_programs_class(cls: type) -> bool:
    return cls is not object and cls.__module__ != "socketserver" and not is_ours(cls)
