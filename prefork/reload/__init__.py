"""Reload in place: from the request to the new image that serves, and what happens when a new image fails.

Owns which generation is in service, the rehearsal, the record that is handed over the exec, and the first steps of the
new image. Runs in the master before and after the exec, and in a rehearsal.
"""
