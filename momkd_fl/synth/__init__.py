"""The semi-real cohort generator."""
