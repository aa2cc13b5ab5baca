"""What devices say and hear, protocol by protocol: no sockets, no clock; bytes in, bytes and answers out."""
