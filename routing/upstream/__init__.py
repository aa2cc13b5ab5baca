"""Calls to upstreams: HTTP servers, AWS Lambda functions, Kinesis streams."""
