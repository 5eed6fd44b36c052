"""The surroundings of the process that becomes the master: what it inherited, what the kernel lets it do, how much room
it has, and the signals that come before it serves.

Runs in that process, before the first fork. Must not supervise, nor know what is served.
"""
