"""Requirements of a block manager in process."""
