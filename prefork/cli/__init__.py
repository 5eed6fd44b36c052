"""The command line: one module per command, and the modules that they share.

Runs in the process of the command line, which for `prefork run` becomes the master. A command's module is imported only
when the command is used. The rest of prefork must not import this package.
"""
