"""The user's module: what is refused, which wrappers are removed, and how it is copied."""
