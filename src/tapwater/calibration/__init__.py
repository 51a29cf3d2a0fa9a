"""What this machine can do: memory, products, and tapwater's own kernels, measured."""
