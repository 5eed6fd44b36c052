"""The state behind the mix-ins: what a server without a pool does when it serves, and what a pool shares with it.

Owns the counting of the requests in the serving process, its supervisor, and the children and threads that requests run
in. Must not be imported before a server is made, but with the classes of a pool: a program that only defines a class is
spared it. Runs in the serving process, and in its children as a copy.
"""
