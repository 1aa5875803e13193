"""Pictures and report of guardrails, from files alone; nothing here imports torch.

    python main.py --task guardrail --mode visualize --output_dir outputs [--start_server --server_port 8000]

The directory holds the runs of adapters (politics.vary_all/, joint.vary_all/, ...), evaluation/guardrail.json, or both;
or it is the run of one adapter.

    learning_curves.png        a column an adapter: losses above, held-out behavior below, the chosen checkpoint marked
    detection_efficiency.png   behavior and tag of each guard, with and without adapters
    recall_vs_fpr.png          recall against false positives of every model, tag and behavior apart
    confusion_matrix.png       whose tag and whose resolution answered what, for routing, joint and each merge
    guard_models.png           adapters beside guard models, guard by guard
    variations.png             variations or checkpoints beside each other

Each is drawn if its numbers are there (guardrail_figures.py, guardrail_curves.py), and one line says why if not;
guardrail_report.py puts them on the page. A model has one color and one marker in all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from evaluation.guardrail_curves import learning_curves, variations
from evaluation.guardrail_figures import confusion_matrix, detection_efficiency, guard_models, recall_vs_fpr
from evaluation.guardrail_numbers import EVALUATION, TASK, Guards, guards_of, load_guards, read_guards
from evaluation.guardrail_report import CURVES, contents_of
from utils.pictures import draw_all, write_pictures
from utils.runs import MANIFEST
from utils.series import Run, runs_below
from utils.sound import sound_manifest
from utils.visualization import render_report, write_report

REPORT = "training_report.html"
PICTURES: dict[str, tuple[Callable[[Guards], bytes | None], str]] = {
    CURVES: (learning_curves, "no run here has logged a loss; --mode train writes it"),
    "detection_efficiency.png": (detection_efficiency, "no guard was evaluated with an adapter"),
    "recall_vs_fpr.png": (recall_vs_fpr, "the evaluation holds no model with recall and false positives"),
    "confusion_matrix.png": (confusion_matrix, "the evaluation holds no model with an adapter"),
    "guard_models.png": (guard_models, "no guard model was evaluated; --mode evaluate --guard_models does"),
    "variations.png": (variations, "it takes an evaluation of two variations or checkpoints or more"),
}
"""What is drawn, by file name, and what it wants."""


def is_guardrail(directory: Path) -> bool:
    """Whether a directory holds guardrails: a run of one, runs of some below it, or their evaluation."""
    if (directory / MANIFEST).is_file():
        return bool(sound_manifest(directory)[0].get("task") == TASK)
    return (directory / EVALUATION).is_file() or bool(runs_below(directory, TASK))


def visualize(output_dir: str, start_server: bool, server_port: int, host: str) -> None:
    """Write pictures and report into the directory, print where they are, and serve them if asked."""
    directory = Path(output_dir)
    guards = read_guards(directory)
    pictures = draw(guards, say=print)
    for path in write_pictures(directory, PICTURES, pictures):
        print(path)
    write_report(guards.run, directory / REPORT, contents_of(guards, pictures))
    print(directory / REPORT)
    if start_server:
        from utils.server import serve

        serve(directory, host, server_port, live_page(directory), load_guards)


def draw(guards: Guards, say: Callable[[str], None] = lambda line: None) -> dict[str, bytes]:
    """The PNGs that a directory has the numbers for, by file name; `say` hears of the others, and why."""
    return draw_all(PICTURES, guards, say)


def live_page(directory: Path) -> Callable[[Run, str], str]:
    """How the server makes the page anew: curves each time, pictures of an evaluation only when that has changed."""
    from utils.live import files_version

    drawn: dict[str, dict[str, bytes]] = {}

    def page(run: Run, version: str) -> str:
        guards = guards_of(run)
        state = files_version(directory, ("evaluation/*.json*",))
        if state not in drawn:
            pictures = draw(guards)
            drawn.clear()
            drawn[state] = pictures
        curves = learning_curves(guards)
        pictures = drawn[state] | ({CURVES: curves} if curves else {})
        return render_report(run, version, contents_of(guards, pictures))

    return page
