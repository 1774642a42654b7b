"""Models on Megatron-core: one builder per family, and what they share."""
