"""The hospital's side: site folders, the worker that runs tasks, the thin Flower ClientApp."""
