"""What a site computes on its images: one module a task, with its `objective` or its `run`."""
