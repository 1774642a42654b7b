"""The operations of a model between its matrix products, each as kernels for the forward and the backward pass."""
