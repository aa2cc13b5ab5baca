"""Analytics: roll-ups of telemetry in windows, its rate of change, and how unusual it is."""
