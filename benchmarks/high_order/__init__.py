"""High-order stacking: accuracy by depth and scheme, speed of convergence, learning rates, memory and time."""
