"""The settings: their definitions, their sources, and the parsing and formatting of values.

Must not hold a value, whose only place is the class attribute, and must not import slow modules. Runs in the process
that calls `serve_forever()` or runs the command line, before anything is bound.
"""
