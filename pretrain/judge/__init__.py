"""What a model can do: tasks of lm-eval on it, by hand or beside training, and what came of them."""
