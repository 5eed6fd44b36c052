"""The control socket: the server in the master, its verbs, and the client of `prefork ctl`.

Owns the socket, its permissions, and the format of requests and answers. The server runs in the master's turns and must
never wait; the client and the rendering of answers run in their own process.
"""
