"""`score`: how good is the received model? Sources answer Dice on `val`, targets the label-free score."""

from clients.learning.scoring import received_dice, received_views, score_received
from clients.learning.training import Numbers, TaskContext


def run(context: TaskContext) -> Numbers:
    """Return the one number that this site's role can give."""
    if context.data.site.config.role == "source":
        return received_dice(context)
    return score_received(context, received_views(context))
