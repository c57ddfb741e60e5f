"""The federation over Flower."""
