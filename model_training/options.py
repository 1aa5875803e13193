"""From the dataclasses of config.py to a checked configuration: flags, YAML files, presets, help and errors.

    python main.py --mode train --config run.yaml --lora_rank 8 --print_config

One place for each option: its name, type and default are the field, its help the docstring under the field. Precedence:

    defaults  <  preset of the embedded model  <  --config FILE.yaml  <  flags

Parsing is argparse, which only splits the line; the types are ours, so that flags and YAML follow one rule and every
error is one line that says what would have been right. Nothing here imports torch.
"""

from __future__ import annotations

import argparse
import ast
import glob
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, make_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from model_training import processes
from model_training.config import TINY
from model_training.models import base_of_adapter
from model_training.option_values import EXPECTED, Option, check_ranges, from_text, from_yaml, listed, near
from utils.errors import UserError
from utils.runs import SECRET_OPTIONS

ROOT = Path(__file__).resolve().parents[1]
GPU_SIGNS = ("/proc/driver/nvidia/gpus/*", "/dev/nvidia[0-9]*", "/dev/dxg")
"""What stands where an NVIDIA device does: its driver, or the device itself in a container or in WSL."""
GPU_MODEL = "meta-llama/Llama-3.1-8B-Instruct"
RANK = {"lora_rank", "r"}
"""Options that a mode has if it makes an adapter."""

Values = dict[str, tuple[Any, str]]
"""Options by name, each with where it was given."""


@dataclass(frozen=True)
class Mode:
    """One cell of the dispatch table: what runs, the dataclass of its options, and how the function takes them."""

    function: str
    config: type
    call: Literal["config", "fields", "pipeline"] = "config"
    parts: tuple[str, ...] = ()
    """Modes that a pipeline is made of, whose sections of a YAML file it takes, too."""
    without_model: str = ""
    """An option that, where it is given, leaves no use for a language model."""


@dataclass(frozen=True)
class Task:
    summary: str
    preset: str
    modes: dict[str, Mode]
    program: str = ""
    """How a program of its own, with one mode, is started; "": main.py."""

    def command(self, mode: str) -> str:
        return self.program or f"python main.py --mode {mode} [--task TASK]"


@dataclass(frozen=True)
class Command:
    """A parsed command line; with `text` there is nothing to run but that to print."""

    task: str = ""
    mode: str = ""
    config: Any = None
    text: str | None = None


# --- fields to options ----------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class PipelineOptions:
    start_step: int = 1
    """First step to run."""
    end_step: int = 4
    """Last step to run."""


def union(name: str, doc: str, parts: list[type], leave_out: Iterable[str] = ()) -> type:
    """One flat dataclass with the fields of all parts; of fields with one name the first counts."""
    made: dict[str, tuple[str, Any, Any]] = {}
    for part in parts:
        hints, docs = get_type_hints(part), _field_docs(part)
        for item in fields(part):
            if item.name not in made and item.name not in set(leave_out):
                copy: Any = field(default=item.default, metadata={"doc": docs[item.name]})
                if item.default_factory is not MISSING:
                    copy = field(default_factory=item.default_factory, metadata={"doc": docs[item.name]})
                made[item.name] = (item.name, hints[item.name], copy)
    return make_dataclass(name, made.values(), namespace={"__doc__": doc}, kw_only=True)


def narrow(config: Any, part: type) -> Any:
    """The part of a united configuration that one mode takes; what the union left out stands at its default."""
    given = asdict(config)
    return part(**{item.name: given[item.name] for item in fields(part) if item.name in given})


@cache
def options_of(config: type) -> dict[str, Option]:
    """The options of a dataclass by name, its own first, then those it shares."""
    hints, docs = get_type_hints(config), _field_docs(config)
    own = list(config.__dict__.get("__annotations__", ()))
    options = {}
    for item in sorted(fields(config), key=lambda item: item.name not in own):
        kind, choices, many, optional = _analyze(hints[item.name])
        default = item.default_factory() if item.default_factory is not MISSING else item.default
        options[item.name] = Option(item.name, kind, choices, many, optional, default, docs[item.name])
    return options


def _analyze(hint: Any) -> tuple[Any, tuple[str, ...], bool, bool]:
    arguments = get_args(hint)
    if type(None) in arguments:
        kind, choices, many, _ = _analyze(next(part for part in arguments if part is not type(None)))
        return kind, choices, many, True
    if get_origin(hint) is Literal:
        return str, arguments, False, False
    if get_origin(hint) is list:
        kind, choices, _, _ = _analyze(arguments[0])
        return kind, choices, True, False
    if hint not in EXPECTED:
        raise TypeError(f"an option cannot be of type {hint}")
    return hint, (), False, False


def _field_docs(config: type) -> dict[str, str]:
    """The docstring under each field, read from the source of the class and its bases."""
    docs: dict[str, str] = {}
    for base in config.__mro__[::-1]:
        docs |= _module_docs(base.__module__).get(base.__qualname__, {})
    return {item.name: item.metadata.get("doc") or docs.get(item.name, "") for item in fields(config)}


@cache
def _module_docs(module: str) -> dict[str, dict[str, str]]:
    path = getattr(sys.modules[module], "__file__", None)
    if path is None or not path.endswith(".py"):
        return {}
    return {
        node.name: {
            name.target.id: " ".join(text.value.value.split())
            for name, text in zip(node.body, node.body[1:], strict=False)
            if isinstance(name, ast.AnnAssign)
            and isinstance(name.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
            and isinstance(text.value.value, str)
        }
        for node in ast.parse(Path(path).read_bytes()).body
        if isinstance(node, ast.ClassDef)
    }


# --- command line ---------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        name, _, text = message.removeprefix("argument ").partition(": ")
        if text == "expected one argument":
            text = f"a value is missing (one that begins with - is given as {name.split('/')[-1]}=VALUE)"
        raise UserError(f"{name}: {text}" if text else message)


def parse(argv: list[str], tasks: Mapping[str, Task]) -> Command:
    """The configuration of a command line, complete and checked; or the help or configuration to print."""
    first = _Parser(prog="python main.py", add_help=False, allow_abbrev=False)
    first.add_argument("--mode")
    first.add_argument("--task", default="secret")
    first.add_argument("-h", "--help", action="store_true")
    given, rest = first.parse_known_args(argv)
    if given.task not in tasks:
        found = near(given.task, tasks)
        raise UserError(f"--task {given.task}: no such task{found or '; there is ' + listed(tasks)}")
    task = tasks[given.task]
    if given.mode is None:
        if given.help:
            return Command(text=_overview(tasks))
        raise UserError(f"--mode is missing: one of {listed(task.modes, 'or')}; --help says what each does")
    if given.mode not in task.modes:
        found = near(given.mode, task.modes)
        raise UserError(f"--mode {given.mode}: no such mode{found or '; there are ' + listed(task.modes)}")
    if given.mode != "train" and processes.count() > 1:
        raise UserError(f"--mode {given.mode} runs in one process; start it without a launcher")
    return _parse_mode(rest, given.task, given.mode, task, given.help)


def parse_program(argv: list[str], name: str, config: type, program: str) -> Command:
    """The same for a program with one set of options, which `program` starts; `name` is its section in YAML files."""
    task = Task("", "", {name: Mode("", config)}, program)
    return _parse_mode([arg for arg in argv if arg not in ("-h", "--help")], "", name, task, {"-h", "--help"} & {*argv})


def _parse_mode(argv: list[str], task_name: str, mode: str, task: Task, wants_help: object) -> Command:
    parser = _mode_parser(mode, task)
    if wants_help:
        return Command(text=parser.format_help().rstrip())
    known, unknown = parser.parse_known_args(argv)
    if unknown:
        raise UserError(_unknown(unknown[0].split("=")[0], mode, task, prefix="--"))
    config = _configure(mode, task, vars(known))
    if known.print_config:
        return Command(text=_as_yaml(task.program or f"python main.py --task {task_name} --mode {mode}", config))
    return Command(task_name, mode, config)


def _mode_parser(mode: str, task: Task) -> _Parser:
    config = task.modes[mode].config
    parser = _Parser(
        prog=task.program or "python main.py",
        usage=f"{task.command(mode)} [--config FILE.yaml] [--option value ...]",
        description=" ".join((config.__doc__ or "").split()),
        epilog=f"Precedence: defaults, then {task.preset} if --model_name is {TINY}, then --config, then flags."
        if (RANK | {"save_lora_path"}) & options_of(config).keys()
        else "Precedence: defaults, then --config, then flags.",
        add_help=False,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    general = parser.add_argument_group("general")
    if not task.program:
        general.add_argument("--task", metavar="TASK", help="What is trained; the default is secret.")
    general.add_argument(
        "--config", action="append", default=[], metavar="FILE.yaml",
        help="Options from a YAML file, flat or keyed by mode; given again, the later file counts.",
    )  # fmt: skip
    general.add_argument(
        "--print_config", action="store_true", default=False, help="Print the resolved configuration as YAML, and stop."
    )
    general.add_argument("--debug", action="store_true", help="Show the traceback of an error.")
    general.add_argument("-h", "--help", action="store_true", help="Show this text.")
    group = parser.add_argument_group(f"options of {mode}")
    for option in options_of(config).values():
        group.add_argument(f"--{option.name}", help=_help(option), metavar=_metavar(option), **_arity(option))
    return parser


def _help(option: Option) -> str:
    shown = " ".join(map(str, option.default)) if option.many and option.default else option.default
    if option.kind is bool:
        shown = str(shown).lower()
    default = "" if option.default in (None, []) else f" Default: {shown}."
    return (option.doc + default).replace("%", "%%")


def _metavar(option: Option) -> str:
    if option.kind is bool:
        return "true|false"
    return "|".join(option.choices) or {str: "TEXT", int: "N", float: "X"}[option.kind]


def _arity(option: Option) -> dict[str, Any]:
    if option.kind is bool:
        return {"nargs": "?", "const": "true"}
    return {"nargs": "*"} if option.many else {}


def _overview(tasks: Mapping[str, Task]) -> str:
    width = max(len(mode) for task in tasks.values() for mode in task.modes) + 2
    lines = ["usage: python main.py --mode MODE [--task TASK] [--config FILE.yaml] [--option value ...]"]
    for name, task in tasks.items():
        lines += ["", f"--task {name}: {task.summary}"]
        lines += [
            f"  {mode:<{width}}{' '.join((entry.config.__doc__ or '').split())}" for mode, entry in task.modes.items()
        ]
    return "\n".join(
        [
            *lines,
            "",
            "The options of a mode, with their defaults:  python main.py --mode train [--task TASK] --help",
            "A whole run on the embedded model:           make demo",
        ]
    )


# --- precedence -----------------------------------------------------------------------------------------------------


def _configure(mode: str, task: Task, given: dict[str, Any]) -> Any:
    """The mode's dataclass from preset, files and flags, each value checked where it was given.

    A mode that trains or reads an adapter has a model, chosen here where none is named.
    """
    config, without_model = task.modes[mode].config, task.modes[mode].without_model
    options = options_of(config)
    flags = {
        name: (from_text(options[name], value, f"--{name}"), f"--{name}")
        for name, value in given.items()
        if name in options
    }
    files: Values = {}
    for path in given["config"]:
        files |= _from_file(Path(path), mode, task)
    preset: Values = {}
    if (RANK | {"save_lora_path"}) & options.keys() and without_model not in files | flags:
        model, _ = (files | flags).get("model_name", (None, ""))
        if model is None:
            model = _model_of_none_named(options, files | flags)
            flags["model_name"] = model, "--model_name"
        if model == TINY:
            preset = _from_file(ROOT / task.preset, mode, task)
            say(f"model {TINY}: defaults from {task.preset} (--print_config shows the result)")
    merged = preset | files | flags
    resolved = config(**{name: value for name, (value, _) in merged.items()})
    check_ranges(resolved, {name: origin for name, (_, origin) in merged.items()})
    return resolved


def _model_of_none_named(options: dict[str, Option], given: Values) -> str:
    """The base of the adapter for modes that only read one, else this machine's default, explained in a line.

    An adapter that is not there is the stage's to report.
    """
    if RANK & options.keys():
        return resolve_model_name(None)
    path, _ = given.get("save_lora_path", (options["save_lora_path"].default, ""))
    if not Path(path).is_dir():
        return resolve_model_name(None)
    base = base_of_adapter(path)
    say(f"model: {base} (the base of the adapter {path}; choose with --model_name)")
    return base


def _from_file(path: Path, mode: str, task: Task) -> Values:
    """The file's values for a mode. All its sections are checked; a pipeline takes those of its parts, then its own."""
    from utils.config_file import read_entries

    own: Values = {}
    of_parts: Values = {}
    clashes: dict[str, str] = {}
    for entry in read_entries(path, task.modes):
        section = entry.section or mode
        options = options_of(task.modes[section].config)
        if entry.name not in options:
            raise UserError(f"{entry.place}: {_unknown(entry.name, section, task)}")
        value = from_yaml(options[entry.name], entry.value, entry.place)
        origin = f"{entry.place}: {entry.name}"
        if section == mode:
            own[entry.name] = value, origin
        elif section in task.modes[mode].parts and entry.name in options_of(task.modes[mode].config):
            before, where = of_parts.setdefault(entry.name, (value, origin))
            if before != value:
                clashes[entry.name] = f"{origin} {value} differs from {where} {before}"
    for name, clash in clashes.items():
        if name not in own:
            raise UserError(f"{clash}: a {mode} has one value for both; give it under {mode}")
    return of_parts | own


def _unknown(name: str, mode: str, task: Task, prefix: str = "") -> str:
    """What is wrong with an option that the mode does not have."""
    bare = name.removeprefix("--")
    if prefix and not name.startswith("--"):
        return f"unexpected {name!r}: an option begins with --, and text of several words stands in quotes"
    homes = {
        option: [other for other in task.modes if option in options_of(task.modes[other].config)]
        for other in task.modes
        for option in options_of(task.modes[other].config)
    }
    if bare in homes:
        return f"{prefix}{bare} is no option of {mode}; it is one of {listed(homes[bare])}"
    close = near(bare, options_of(task.modes[mode].config)) or near(bare, homes)
    if not close:
        command = task.program or f"python main.py --mode {mode}"
        return f"{prefix}{bare}: no mode has such an option; {command} --help lists those of {mode}"
    found = close.split()[-1].rstrip("?")
    return f"{prefix}{bare}: no such option; did you mean {prefix}{found} (an option of {listed(homes[found])})?"


def resolve_model_name(name: str | None) -> str:
    """The given name, or the default of this machine, which one line on stderr names and explains."""
    if name is not None:
        return name
    chosen, reason = default_model_name()
    say(f"model: {chosen} ({reason}; choose with --model_name)")
    return chosen


def default_model_name() -> tuple[str, str]:
    """The model where none is named, and why: the 8B Llama where CUDA is present, else the embedded one.

    CUDA is present if an NVIDIA device is, is not hidden by CUDA_VISIBLE_DEVICES, and torch is not a build for CPUs.
    """
    if not any(glob.glob(sign) for sign in GPU_SIGNS):
        return TINY, "no CUDA device here"
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1", "none", "NoDevFiles"):
        return TINY, "CUDA_VISIBLE_DEVICES hides every device"
    import importlib.metadata

    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return TINY, "torch is not installed"
    if version.endswith("+cpu"):
        return TINY, f"torch {version} is a build without CUDA"
    return GPU_MODEL, "CUDA is present"


def say(line: str) -> None:
    """A line for the user on stderr, once however many processes run the command."""
    if os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr)


def _as_yaml(command: str, config: Any) -> str:
    import yaml

    shown = {name: value for name, value in asdict(config).items() if name not in SECRET_OPTIONS}
    text = yaml.safe_dump(shown, sort_keys=False, allow_unicode=True, width=120)
    return f"# {command} --config THIS_FILE\n{text}".rstrip()
