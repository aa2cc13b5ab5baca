"""What to do when the other side fails: breakers, back-off, pacing, concurrency."""
