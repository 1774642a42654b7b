"""Decoders as LLaMA-2 is one, and those that differ from it in a few facts: see `table` in the module of that name."""
