"""The shared memory between the processes of a service, and its readers.

The lowest layer: imports nothing else of prefork. Every process of a service uses it.
"""
