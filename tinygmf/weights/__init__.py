"""Files of weights, hostile until proven otherwise."""
