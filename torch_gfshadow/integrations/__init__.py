"""Callbacks for training frameworks. Each module imports its framework, this package none.

Plain PyTorch and Accelerate need none of them: :func:`torch_gfshadow.attach` looks through
their wrappers.
"""
