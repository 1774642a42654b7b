"""Searches for an order of sublayers, with small models that are trained in one process."""
