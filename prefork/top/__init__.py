"""The parts of `prefork top`: its sources, its computations and its screen.

Runs in its own process. Reads a control socket or a metrics URL, and must not send a command unless a key asks for it.
"""
