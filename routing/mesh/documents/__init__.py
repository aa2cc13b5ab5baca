"""Where resources are read from."""
