"""What a release may contain."""
