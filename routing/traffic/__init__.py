"""Traffic is shifted from one version of a service to another, step by step, as its metrics allow."""
