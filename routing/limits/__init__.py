"""How much a peer may send: token buckets, shared by the workers of a node."""
