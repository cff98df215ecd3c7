"""Comparisons with other packages: speed and wrong numbers."""
