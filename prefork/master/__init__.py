"""The master's turn: note what has happened, plan, apply.

Owns the phase, the child table, the timers, the only fork and the only reap. Must not handle a request or start a
thread. Runs in the process that serves: the master of a pool, or a plain server with children. Of the packages that
have a turn in it (reload, control, exporter) it knows only their protocols.
"""
