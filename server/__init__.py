"""The coordinator's side: rounds, exact aggregation, checkpoints, the Flower ServerApp, reports."""
