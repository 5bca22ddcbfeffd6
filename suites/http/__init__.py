"""Requirements of a server at a URL."""
