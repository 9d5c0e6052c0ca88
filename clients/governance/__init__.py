"""What a hospital allows, approves and records."""
