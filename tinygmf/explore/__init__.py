"""A page that runs the network in a browser and shows its attention part by part."""
