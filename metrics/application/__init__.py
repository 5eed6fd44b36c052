"""The program's own metrics: where their values are, and what becomes of them at a scrape.

region.py is the memory, series.py the names, values.py what prometheus_client writes to, exposition.py what a scrape
says. Nothing here but exposition.py imports prometheus_client.
"""
