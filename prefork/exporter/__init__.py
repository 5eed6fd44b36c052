"""The process that serves /metrics, /-/healthy and /-/ready.

child.py is the master's side: the listener, the fork, the restarts. server.py is the exporter itself, imported in its
process only. The exporter reads shared memory and the kernel, and must not write anything but its count of accepted
connections.
"""
