"""A feed out of Amazon Kinesis."""
