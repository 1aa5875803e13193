"""Pictures and report of reward models, from a run directory's files alone; nothing here imports torch.

    python main.py --task preference --mode visualize --output_dir runs/mv [--start_server --server_port 8000]

The directory may be one of three:

- a run of train: its curves, and if it was evaluated, everything below
- the output of evaluate alone, of any number of models: everything below, without curves
- a synthetic experiment, OUT_DIR/ENV/BATCH_LR_ITERATIONS: its figure (model_training/synthetic_figures.py)

    loss_curve.png             loss, accuracy, margin and spread over steps, on training batches and held-out pairs
    model_comparison.png       the main metrics of several models, with 95 % intervals
    reward_distributions.png   rewards of chosen and rejected answers, and the distribution of their difference
    spread_by_subset.png       spread of a pair by subset, and of contested and agreed pairs where the data knows them
    risk_curve.png             what choosing by the alpha-quantile gives as alpha falls, and the trade-off it makes
    reliability.png            how often the answer expected to win was chosen, by how sure the model was

Each is drawn if its numbers are there (preference_figures.py, preference_curves.py), and one line says why if not;
preference_report.py puts them on the page. A model has one color in all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from evaluation import synthetic_report
from evaluation.preference_curves import reliability, risk_curve
from evaluation.preference_figures import model_comparison, reward_distributions, spread_by_subset
from evaluation.preference_numbers import Evaluated, evaluated
from evaluation.preference_report import contents_of
from utils.errors import UserError
from utils.panels import panels
from utils.pictures import draw_all, write_pictures
from utils.plots import plot
from utils.series import Run, load_run
from utils.visualization import render_report, write_report

TASK = "preference"
REPORT = "training_report.html"
CURVES = "loss_curve.png"
PICTURES: dict[str, tuple[Callable[[Evaluated], bytes | None], str]] = {
    "model_comparison.png": (model_comparison, "it takes an evaluation of two models or more"),
    "reward_distributions.png": (reward_distributions, "evaluation/preference_items.jsonl holds no pairs"),
    "spread_by_subset.png": (spread_by_subset, "evaluation/preference_items.jsonl has no model with spread"),
    "risk_curve.png": (risk_curve, "no evaluated model has a spread and several alphas"),
    "reliability.png": (reliability, "evaluation/preference.json holds no reliability table"),
}
"""What is drawn of an evaluation, by file name, and what it wants."""


def visualize(output_dir: str, start_server: bool, server_port: int, host: str) -> None:
    """Write pictures and report into the directory, print where they are, and serve them if asked."""
    directory = Path(output_dir)
    run = load_run(directory)
    if task_of(run) not in (TASK, None):
        raise UserError(f"{directory} holds a run of task {task_of(run)}; give --task {task_of(run)}")
    pictures = draw(run, say=print)
    for path in write_pictures(directory, (CURVES, *PICTURES), pictures):
        print(path)
    write_report(run, directory / REPORT, contents_of(run, pictures))
    print(directory / REPORT)
    if start_server:
        from utils.server import serve

        serve(directory, host, server_port, live_page(directory))


def task_of(run: Run) -> str | None:
    """The task whose run, or else whose evaluation, a directory holds."""
    found = run.manifest.get("task") or (run.evaluation or {}).get("task")
    return str(found) if found else None


def draw(run: Run, say: Callable[[str], None] = lambda line: None) -> dict[str, bytes]:
    """The PNGs that a directory has the numbers for, by file name; `say` hears of the others, and why."""
    if synthetic_report.is_synthetic(run):
        return synthetic_report.draw(run, say)
    pictures: dict[str, bytes] = {}
    shown = [panel for panel in panels(run) if panel.group in ("loss", "pairs")]
    if shown:
        pictures[CURVES] = plot(run, shown, 2)
    else:
        say(f"{CURVES}: not drawn, metrics.jsonl holds no loss of a reward model's training")
    return pictures | draw_all(PICTURES, evaluated(run), say)


def live_page(directory: Path) -> Callable[[Run, str], str]:
    """How the server makes the page anew: pictures only when the evaluation has changed, which is seldom."""
    from utils.live import files_version

    drawn: dict[str, dict[str, bytes]] = {}

    def page(run: Run, version: str) -> str:
        state = files_version(directory, ("evaluation/*.json*",))
        if state not in drawn:
            pictures = draw(run)
            drawn.clear()
            drawn[state] = pictures
        return render_report(run, version, contents_of(run, drawn[state]))

    return page
