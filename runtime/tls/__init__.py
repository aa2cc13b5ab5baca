"""Certificates, keys and revocation lists, loaded together and reloaded when they change."""
