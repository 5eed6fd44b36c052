"""Puts prefork in socketserver's place before anything else is imported: the interpreter imports this as it starts.

Runs in every process of a program's tests whose PYTHONPATH names this folder, and in those that they start.
"""

import sys

import prefork

assert "socketserver" not in sys.modules, "imported too early to see prefork"
sys.modules["socketserver"] = prefork
