"""What one looks at: maps, figures, ablations, costs, kernels."""
