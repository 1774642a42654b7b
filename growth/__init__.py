"""Growth as linear maps on the logical axes of a model."""
