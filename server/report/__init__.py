"""What a run shows: page, charts, tables, conclusions."""
