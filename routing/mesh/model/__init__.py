"""App Mesh resources as data."""
