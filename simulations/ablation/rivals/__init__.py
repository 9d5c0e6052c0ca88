"""The field's methods, each a task, so that an ablation can set them beside the study's own under the same budget.

Importing this makes their tasks known: to the process that trains them, and to no hospital.
"""

from simulations.ablation.rivals import class_ratio, fourier, masked_consistency, mean_teacher

__all__ = ["class_ratio", "fourier", "masked_consistency", "mean_teacher"]
