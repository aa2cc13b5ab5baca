"""A drawing of a mesh: who calls whom, how much, and how it goes."""
