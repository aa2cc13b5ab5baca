"""What the analytics service keeps, in SQLite."""
