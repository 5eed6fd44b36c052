"""Reload in place: from the wish to the new image that serves, and what becomes of one that fails.

Owns which generation is in service, the rehearsal, the record that goes over the exec, and the first steps of the new
image. Runs in the master before and after the exec, and in a rehearsal.
"""
