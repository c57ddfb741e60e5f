"""Secure aggregation as pure state machines."""
