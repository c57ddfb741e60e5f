"""From files to patients."""
