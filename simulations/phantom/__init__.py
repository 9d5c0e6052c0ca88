"""Simulated patients under simulated probes."""
