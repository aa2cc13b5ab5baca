"""From the spool to the stream: the shipper and its sinks."""
