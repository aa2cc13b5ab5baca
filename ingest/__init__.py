"""The gateway process: listeners, pipeline, spool, delivery, supervision."""
