"""Users that nobody else is, and how a service becomes one."""


def become(user: int) -> tuple[str, ...]:
    """What goes before a command line, as root: that user may read what the interpreter is made of, wherever it lies,
    and nothing else that is not his."""
    return (
        "setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--inh-caps=+dac_read_search",
        "--ambient-caps=+dac_read_search",
    )  # fmt: skip
