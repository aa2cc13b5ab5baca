"""From resources to the configuration of Envoys."""
