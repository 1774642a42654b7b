"""The optimizer of generations, the gradients it takes and the schedules of its rates."""
