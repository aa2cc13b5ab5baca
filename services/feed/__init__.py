"""What brings the records of the stream to a service that consumes them, each to take effect once."""
