"""The control socket: the server that the master is, its verbs, and the client that `prefork ctl` is.

Owns the socket, who may use it, and the form of a request and its answer. The server runs in the master, in its turns,
and never waits; the client and what renders an answer run in a process of their own.
"""
