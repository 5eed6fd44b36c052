"""Shared memory between the processes of a service, and its readers.

The lowest floor: imports nothing of prefork's. Every process of a service uses it.
"""
