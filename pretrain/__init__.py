"""The training stack: configuration, models, layouts, engine, data, loop and checkpoints."""

import pretrain.families  # noqa: F401, whoever imports a room has the families
