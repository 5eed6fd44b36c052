"""The command line: a command is a file of its name, and beside them what they share.

Runs in the process of the command line, which for `prefork run` becomes the master. A command's file is imported when
the command is asked for. Nothing else of prefork imports this package.
"""
