"""What `prefork top` is made of: whom it asks, what it computes, what it shows.

Runs in a process of its own; reads a control socket or a metrics URL, and commands nothing but what a key says.
"""
