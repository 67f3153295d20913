"""What every layer shares: records, settings, errors, AWS clients, telemetry, recovery."""
