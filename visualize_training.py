"""Plots and report of a run, or of several beside each other, from their files alone; nothing here imports torch.

    python visualize_training.py --metrics_dir outputs
    python visualize_training.py --metrics_dir outputs --mode plot
    python visualize_training.py --metrics_dir outputs --output /tmp/shared_report.html --mode report
    python visualize_training.py --metrics_dir runs/a runs/b runs/c --best_by mean_reward
    python visualize_training.py --metrics_dir outputs --follow

A run's evaluation, if it has one, is printed as a table; of several runs, which is the best, the options that differ
and the paired differences (evaluation/run_comparison.py). `--follow` shows a run under way in the terminal.
`main.py --mode visualize` draws the same of one run and serves it.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from utils.errors import UserError, exit_code

REPORT, COMPARISON = "training_report.html", "comparison_report.html"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument(
        "--metrics_dir",
        nargs="+",
        default=["outputs"],
        metavar="DIR",
        help="Run directory, or several to compare: differences are told from the first. Default: outputs.",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help=f"Report to write. Of one run a bare name is put into its directory, default {REPORT}; "
        f"of several the default is {COMPARISON}.",
    )
    parser.add_argument(
        "--mode",
        choices=["report", "plot", "all"],
        default="all",
        help="What to write; plots are of one run. Default: all.",
    )
    parser.add_argument(
        "--best_by",
        metavar="METRIC",
        help="What several runs are ranked by: a metric of the evaluation or of the training (eval/loss); METRIC:min "
        "or METRIC:max where its name does not say which end is better. Default: by task.",
    )
    parser.add_argument(
        "--follow", action="store_true", help="Follow a running training in the terminal, until it ends."
    )
    parser.add_argument("--debug", action="store_true", help="Show the traceback of an error.")
    given = parser.parse_args(argv)
    return exit_code(lambda: run(given), given.debug)


def run(given: argparse.Namespace) -> None:
    directories = [Path(directory) for directory in given.metrics_dir]
    _check(given, directories)
    if given.follow:
        from utils.follow import follow

        follow(directories[0], sys.stdout)
    elif len(directories) > 1:
        compare_runs(directories, Path(given.output or COMPARISON), given.best_by)
    else:
        draw(directories[0], Path(given.output or REPORT), given.mode)


def _check(given: argparse.Namespace, directories: list[Path]) -> None:
    """Refuse options that would do nothing."""
    several = len(directories) > 1
    if given.follow and (several or given.best_by or given.output or given.mode != "all"):
        raise UserError("--follow goes with one --metrics_dir and nothing else: it writes no file")
    if given.best_by and not several:
        raise UserError("--best_by ranks several runs; give --metrics_dir two or more")
    if several and given.mode == "plot":
        raise UserError("--mode plot draws one run; leave --mode out to compare several, or name one --metrics_dir")


def compare_runs(directories: list[Path], output: Path, best_by: str | None) -> None:
    """Print and write what the runs are beside each other."""
    from evaluation.comparison_report import contents_of, merged, text
    from evaluation.run_comparison import compare
    from utils.visualization import write_report

    found = compare(directories, best_by)
    print(text(found))
    write_report(merged(found), output, contents_of(found))
    print(f"Report: {output}")


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
    from utils.panels import is_count
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
