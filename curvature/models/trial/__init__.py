"""Trials of a model when a problem is built: outputs, derivatives, hooks, and parameters outside the layout."""
