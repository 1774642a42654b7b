"""Text that a model writes, by the reference model with a cache of keys and values."""
