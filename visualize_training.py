"""Plots and report of a run, from its files alone; nothing here imports torch.

    python visualize_training.py --metrics_dir outputs
    python visualize_training.py --metrics_dir outputs --mode plot
    python visualize_training.py --metrics_dir outputs --output /tmp/shared_report.html --mode report

The run's evaluation, if it has one, is printed as a table. `main.py --mode visualize` draws the same and serves it.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from utils.errors import UserError, WorkError


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("--metrics_dir", default="outputs", metavar="DIR", help="Run directory. Default: outputs.")
    parser.add_argument(
        "--output",
        default="training_report.html",
        metavar="FILE",
        help="Report to write; a bare name is put into the run directory. Default: training_report.html.",
    )
    parser.add_argument("--mode", choices=["report", "plot", "all"], default="all", help="What to write. Default: all.")
    given = parser.parse_args(argv)
    try:
        draw(Path(given.metrics_dir), Path(given.output), given.mode)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except WorkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def draw(directory: Path, output: Path, mode: str) -> None:
    from evaluation import guardrail_plots, guardrail_report, preference_plots, preference_report
    from evaluation.guardrail_numbers import read_guards
    from utils.pictures import write_pictures
    from utils.plots import write_plots
    from utils.series import load_run
    from utils.visualization import Contents, write_report

    contents: Contents | None = None
    if guardrail_plots.is_guardrail(directory):
        guards = read_guards(directory)
        run, pictures = guards.run, guardrail_plots.draw(guards, say=print)
        contents = guardrail_report.contents_of(guards, pictures)
        write = partial(write_pictures, directory, guardrail_plots.PICTURES, pictures)
    else:
        run = load_run(directory)
        write = partial(write_plots, run, directory)
        if preference_plots.task_of(run) == preference_plots.TASK:
            pictures = preference_plots.draw(run, say=print)
            contents = preference_report.contents_of(run, pictures)
            write = partial(write_pictures, directory, (preference_plots.CURVES, *preference_plots.PICTURES), pictures)
    if run.evaluation:
        print(evaluation_text(run.evaluation))
    if mode in ("plot", "all"):
        for path in write():
            print(path)
    if mode in ("report", "all"):
        report = directory / output if output.parent == Path() and not output.is_absolute() else output
        write_report(run, report, contents)
        print(f"Report: {report}")


def evaluation_text(evaluation: dict[str, object]) -> str:
    """Metrics down, models across, each value with its 95 % interval and n."""
    from evaluation.tables import table
    from utils.formatting import interval, metric_value
    from utils.series import is_count
    from utils.tables import Cell, evaluation_table

    found = evaluation_table(evaluation)

    def shown(metric: str, cell: Cell | None) -> str:
        if cell is None:
            return "-"
        if is_count(metric):
            return f"{metric_value(metric, cell.value)} of {cell.n}"
        return f"{metric_value(metric, cell.value)} ({interval(metric, cell)}, n {cell.n})"

    rows = [(metric, [shown(metric, cell) for cell in cells]) for metric, cells in found.rows]
    return table("metric", found.columns, rows)


if __name__ == "__main__":
    sys.exit(main())
