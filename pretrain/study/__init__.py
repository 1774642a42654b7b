"""Studies: models that are trained in one process, to learn something about models that will be."""
