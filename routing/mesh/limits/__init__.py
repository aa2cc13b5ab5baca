"""The service that counts for rate limits which all proxies of a mesh share."""
