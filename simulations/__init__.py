"""The researcher's side: phantom, local multi-site runs, data-set imports, experiments."""
