"""The control plane of the mesh: what Envoys ask for over xDS, and what each is sent."""
