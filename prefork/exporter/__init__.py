"""The process that serves /metrics, /-/healthy and /-/ready.

child.py is the master's side: its listener, its fork, its restarts. server.py is its body, imported in that process
only. It reads shared memory and the kernel, and writes only how many connections it has taken.
"""
