"""The hospital's processes: the worker, its gatekeeper and the ways in."""
