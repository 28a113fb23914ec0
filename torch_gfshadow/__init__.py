"""torch_gfshadow: the gradient flow beside your training loop."""
