"""The code that runs after the fork: a child's set-up, loop, lanes and limits. Imports only prefork.metrics."""
