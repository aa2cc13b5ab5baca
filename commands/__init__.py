"""The sub-commands of the `headworks` command line, one module a noun."""
