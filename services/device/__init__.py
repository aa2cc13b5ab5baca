"""The device service: tenants, devices, groups, certificates, provisioning, imports, shadows, keys."""
