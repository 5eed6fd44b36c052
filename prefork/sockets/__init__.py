"""Listening sockets, their addresses, and the ownership of Unix paths.

Used in the master and in the process of the command line; a worker inherits a listener and must only accept.
"""
