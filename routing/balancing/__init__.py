"""Which server of an upstream gets the next request. Deciders only: nothing here waits or reads a clock."""
