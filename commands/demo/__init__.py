"""`headworks dev`: a node and a simulated fleet on one machine, for a first look."""
