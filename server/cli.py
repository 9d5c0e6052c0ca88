"""The coordinator's commands: `crossprobe study`, `provision` and `report`."""

from common.options import RunArgument, TensorBoard, commands, examples
from server.federation.cli import study
from server.federation.provision_cli import app as provision

app = commands()
app.add_typer(provision)
app.add_typer(study, name="study")


@app.command(epilog=examples("crossprobe report runs/demo", "crossprobe report runs/demo --tensorboard runs/board"))
def report(run: RunArgument, tensorboard: TensorBoard = None) -> None:
    """Render the report of a run.

    Writes RUN/report.html and RUN/summary.json from what a run left, also while it goes on.
    """
    from common.errors import RunError
    from server.report.page import render_report
    from server.report.summary import write_summary

    try:
        write_summary(run)
    except RunError as error:
        print(f"no summary yet: {error}")
    print(render_report(run))
    if tensorboard is not None:
        from server.tensorboard import Events

        with Events(run, tensorboard):
            print(f"see it with: tensorboard --logdir {tensorboard}")
