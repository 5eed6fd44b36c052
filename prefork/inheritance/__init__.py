"""The meeting of server classes in one object: the program's, ours, and the standard library's.

Runs when a class is defined, and in any process that has the object. Must not know what a server does.
"""
