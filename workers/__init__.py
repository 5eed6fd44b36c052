"""What runs after the fork: the child's set-up, its loop, its lanes, its limits. Imports only prefork.metrics."""
