"""What the labs call: profiles, engines, benchmark, telemetry, KV cache, checks, the tiny model."""
