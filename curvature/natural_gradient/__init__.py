"""Natural-gradient steps, preconditioners, and what whitens the gradient noise."""
