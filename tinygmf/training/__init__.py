"""Training: recipes, the compiled step and the loop around it."""
