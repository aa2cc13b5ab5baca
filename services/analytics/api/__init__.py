"""The operations of the analytics service, a module a noun."""
