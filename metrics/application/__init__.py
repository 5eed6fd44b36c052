"""The program's own metrics: where their values are stored, and how a scrape shows them.

region.py is the memory, series.py the names, values.py the class that prometheus_client writes to, hook.py installs
that class, exposition.py turns the values into a scrape. Only exposition.py may import prometheus_client.
"""
