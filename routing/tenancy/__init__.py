"""Who a peer is: identities, credentials, tenants, devices and plans."""
