"""Imports point one way, and nothing imports the dispatcher."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "utils": {"utils"},
    "prompts": {"prompts", "utils"},
    "dataset": {
        "dataset",
        "prompts",
        "utils",
        "model_training.config",
        "model_training.preference_config",
        "model_training.guardrail_config",
        "model_training.options",
        "model_training.option_values",
        "model_training.measured",
        "model_training.safety",
        "model_training.text_measures",
    },
    "model_training": {"model_training", "dataset", "prompts", "utils"},
    "evaluation": {"evaluation", "model_training", "dataset", "prompts", "utils"},
}


def imported(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def test_imports_point_one_way() -> None:
    wrong = []
    for package, allowed in MAY_IMPORT.items():
        for file in (ROOT / package).rglob("*.py"):
            for name in imported(file):
                if name.partition(".")[0] not in {*MAY_IMPORT, "main", "visualize_training", "tests", "benchmarks"}:
                    continue
                if name not in allowed and name.partition(".")[0] not in allowed:
                    wrong.append(f"{file.relative_to(ROOT)} imports {name}")
    assert not wrong
