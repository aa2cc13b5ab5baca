"""What is on the wire: sans-I/O codecs and sessions, without a clock or a socket."""
