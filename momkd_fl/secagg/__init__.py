"""Secure aggregation as pure state machines: no network, no clock (docs/secure-aggregation.md)."""
