"""Metrics, logs and progress; nothing of ours."""
