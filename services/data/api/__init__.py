"""The operations of the data service, a module a noun."""
