"""Looking inside: maps, figures, ablations, costs, kernels."""
