"""Grids of curricula that are compared, out of one file; which runs they are, and which of them come next."""
