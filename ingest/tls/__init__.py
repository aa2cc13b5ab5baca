"""Mutual TLS: contexts, reload, tickets, and who a certificate names."""
