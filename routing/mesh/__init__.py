"""The service mesh: App Mesh resources, and what Envoys run for them."""
