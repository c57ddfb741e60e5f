"""Synthetic consortia: real or synthetic expression, synthetic slides, files as hospitals have them."""
