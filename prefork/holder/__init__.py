"""The process that has the idle connections.

child.py is the master's side: the fork, the restarts, the watch. server.py is the holder itself, imported in its
process only. The holder runs no code of the program's, has no listener and reads no request: it receives connections
from the park queue, and sends those with bytes to the ready queue, where any worker takes them.
"""
