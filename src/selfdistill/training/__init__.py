"""Training: one loop for every method, its schedule, its determinism and its cost."""
