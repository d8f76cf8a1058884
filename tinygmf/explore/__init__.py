"""The explorable page: the network at work in a browser, drawn part by part."""
