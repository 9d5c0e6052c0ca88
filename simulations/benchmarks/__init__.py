"""Measurements that are commands."""
