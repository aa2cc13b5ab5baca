"""Delivery to Amazon Kinesis Data Streams."""
