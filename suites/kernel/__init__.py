"""Requirements of paged attention in process."""
