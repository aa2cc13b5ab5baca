"""What every process of ours needs: clock, log, settings file, TLS material, problem details."""
