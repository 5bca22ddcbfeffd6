"""What a client asked for, and who runs next."""
