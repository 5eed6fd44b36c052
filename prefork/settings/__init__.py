"""The settings: what can be set, where a value comes from, how it is read and written.

Holds no value: the class attribute is the only place. Runs in the process that calls `serve_forever()` or the command
line, before anything is bound; imports nothing that takes time.
"""
