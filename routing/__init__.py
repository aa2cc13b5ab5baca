"""Where traffic goes, and whether it may: tenancy, limits, resilience."""
