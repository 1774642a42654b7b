"""The training stack: configuration, models, layouts, engine, data, loop and checkpoints."""
