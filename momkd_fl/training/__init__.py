"""One site's training."""
