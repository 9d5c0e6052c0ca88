"""The audit of leakage: what a hostile coordinator gets out of a site, by the messages alone."""
