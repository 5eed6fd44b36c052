"""Listening sockets, their addresses, and who owns a Unix path.

Used in the master and in the process of the command line; a worker inherits a listener and only accepts.
"""
