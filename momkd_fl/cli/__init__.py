"""The commands; torch is imported lazily."""
