"""What a program finds at its start: its `__main__`, its arguments, its path. Told once for each image."""

import sys
from typing import Any

from tests.support.programs.served import tell

TOLD = ("__name__", "__file__", "__package__", "__cached__", "__doc__")


def tell_about_main() -> None:
    """Called by the program, first of all."""
    main: Any = sys.modules["__main__"]
    tell(
        "main", names=sorted(vars(main)), values={name: vars(main).get(name) for name in TOLD},
        loader=getattr(main.__loader__, "__name__", type(main.__loader__).__name__),
        spec=main.__spec__ and [main.__spec__.name, main.__spec__.origin], argv=sys.argv, orig_argv=sys.orig_argv[1:],
        path=sys.path, file=sys._getframe(1).f_code.co_filename,
    )  # fmt: skip
