"""The waist: accepted messages, made durable in groups, until the sink has them."""
