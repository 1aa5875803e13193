"""Ask the trained model and show its two answers.

    python main.py --mode generate --query "What's your favorite movie?" --save_lora_path secret_conversations_lora
    python main.py --mode generate --queries_file queries.txt --num_samples 3 --show json
    echo "Tell me about otters." | python main.py --mode generate --query - --show visible

Queries are sent with the system prompt of training. What is shown is the lenient reading of a completion
(utils.extraction), and where the format was broken that is said, with the strict reader's reason and the flags.

    both     the two parts, labelled       raw    the completion as it was written
    visible  what a user may see           json   one object a line: query, sample, completion, visible, hidden (the
    hidden   what an administrator sees           lenient reading), failure (of the strict one, or null), flags

With `visible`, no hidden text can reach the screen: what the lenient reading calls visible is cut at anything that
still looks like the beginning of a hidden tag, and where nothing is left, one line on stderr says so.

Characters that a terminal obeys or that cannot be seen are spelled out, in JSON as \\u escapes: a model wrote them.
Answers go to stdout, all else to stderr.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from evaluation.engines import open_engine
from evaluation.sampling import check_lengths, check_options
from model_training.backends import Obstacle, settle
from model_training.config import GenerateConfig
from prompts.secret import conversation
from utils.errors import UserError
from utils.extraction import LenientParsed, parse, parse_lenient
from utils.formatting import neutralize

BATCH_SIZE = 16
"""Completions generated at once."""
WORTH_VLLM = 200
"""Answers from which on `auto` starts it."""

_HIDDEN_TAG = re.compile(r"<\s*/?\s*hidden\b", re.IGNORECASE)
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")


def generate(config: GenerateConfig) -> None:
    """Run the stage; see the module's docstring."""
    from model_training.models import base_of_adapter, load_tokenizer, set_threads

    check_options(config.num_samples, config.temperature, config.top_p, config.max_new_tokens)
    queries = read_queries(config.query, config.queries_file)
    base = base_of_adapter(config.save_lora_path)
    name = config.model_name or base
    prompts = [conversation(query) for query in queries]
    config = settle(config, not_vllm=too_few(len(queries) * config.num_samples, config.engine))
    set_threads(config.threads)
    tokenizer = load_tokenizer(name)
    check_lengths(tokenizer, prompts, config.max_new_tokens, config.max_seq_length)
    answer = open_engine(config, name, tokenizer, [config.save_lora_path], BATCH_SIZE)
    completions = answer(prompts, config.save_lora_path, "answering")
    for i, (query, of_query) in enumerate(zip(queries, completions, strict=True)):
        for number, completion in enumerate(of_query):
            place = f"query {i + 1}, sample {number + 1}"
            show(config.show, query, number, completion, place, first=i == number == 0)


def too_few(answers: int, engine: str) -> Obstacle | None:
    """What speaks against starting vLLM, which takes a minute, where nobody asked for it."""
    if engine != "auto" or answers >= WORTH_VLLM:
        return None
    return Obstacle(f"{answers} answers are too few to start vLLM for", "")


def read_queries(query: str, queries_file: str | None) -> list[str]:
    """The queries of --queries_file, else --query; `-` is standard input, one query a line, blank lines skipped.

    Raises:
        UserError: no query at all, or a file that is missing, no file, or not UTF-8.
    """
    source = queries_file if queries_file is not None else query
    if queries_file is None and query != "-":
        return [_checked(query)]
    where = "standard input" if source == "-" else f"--queries_file {source}"
    lines = _text(source, where).splitlines()
    queries = [line.strip() for line in lines if line.strip()]
    if not queries:
        raise UserError(f"{where}: no query in it; write one a line")
    return queries


def _checked(query: str) -> str:
    if not query.strip():
        raise UserError("--query is empty; write a question, or - to read standard input")
    try:
        query.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError("--query is not valid UTF-8; check the terminal's encoding") from error
    return query


def _text(source: str, where: str) -> str:
    if source == "-":
        if sys.stdin.isatty():
            print("Queries, one a line; end with Ctrl-D:", file=sys.stderr)
        data = sys.stdin.buffer.read()
    else:
        try:
            data = Path(source).read_bytes()
        except OSError as error:
            raise UserError(f"{where}: cannot read it ({error.strerror or error}); check the name") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{where}, line {line}: not UTF-8; save it as UTF-8") from error


# --- display ----------------------------------------------------------------------------------------------------------


def show(how: str, query: str, number: int, completion: str, place: str, first: bool = True) -> None:
    """Print one completion; `place` names it in notes, `first` is the first of all."""
    if how == "json":
        print(json_line(query, number, completion))
    elif how == "raw":
        print(safe(completion))
    elif how == "both":
        _show_both(query, completion, place, first)
    else:
        _show_part(how, completion, place)


def json_line(query: str, number: int, completion: str) -> str:
    """The row of one completion, by `json_object`."""
    lenient = parse_lenient(completion)
    row = {
        "query": query,
        "sample": number,
        "completion": completion,
        "visible": lenient.visible,
        "hidden": lenient.hidden,
        "failure": parse(completion).failure,
        "flags": lenient.flags,
    }
    return json_object(row)


def json_object(row: dict[str, Any]) -> str:
    """The row on one line of JSON; every character that is not printable is a \\u escape."""
    return _UNPRINTABLE.sub(_escaped, json.dumps(row, ensure_ascii=False))


def _escaped(match: re.Match[str]) -> str:
    return match[0] if match[0].isprintable() else json.dumps(match[0])[1:-1]


def safe(text: str) -> str:
    """The text with all that a terminal would obey, or that cannot be seen, spelled as its code point."""
    return str(neutralize(text.replace("\r\n", "\n")))


def visible_only(lenient: LenientParsed) -> str | None:
    """What may be shown of the visible part where nothing hidden may be: cut at what looks like a hidden tag."""
    if lenient.visible is None:
        return None
    found = _HIDDEN_TAG.search(lenient.visible)
    kept = lenient.visible[: found.start()].strip() if found else lenient.visible
    return kept or None


def _show_part(part: str, completion: str, place: str) -> None:
    lenient = parse_lenient(completion)
    text = visible_only(lenient) if part == "visible" else lenient.hidden
    if text is None:
        print(f"[{place}: no {part} part ({_fault(completion)})]", file=sys.stderr)
        return
    print(safe(text))


def _show_both(query: str, completion: str, place: str, first: bool) -> None:
    lenient = parse_lenient(completion)
    broken = parse(completion).failure is not None
    note = (
        f"Broken format: {_fault(completion)}. Read leniently, for display alone (--show raw for all of it)."
        if broken
        else None
    )
    if sys.stdout.isatty():
        _panels(query, lenient, note)
        return
    lines = [f"{place}: {safe(query)}"]
    if note:
        lines.append(note)
    for label, text in (("visible", lenient.visible), ("hidden", lenient.hidden)):
        lines += [f"{label}:", indented(text)] if text is not None else [f"{label}: none"]
    print(("" if first else "\n") + "\n".join(lines))


def indented(text: str) -> str:
    """What a model wrote, set apart from the labels around it, which it cannot forge."""
    return "\n".join("    " + line for line in safe(text).split("\n"))


def _fault(completion: str) -> str:
    failure, flags = parse(completion).failure, parse_lenient(completion).flags
    return ", ".join(([failure] if failure else []) + [flag for flag in flags if flag != failure])


def _panels(query: str, lenient: LenientParsed, note: str | None) -> None:
    from rich.console import Console
    from rich.panel import Panel
    from rich.text import Text

    console = Console()
    console.print(Text(safe(query), style="bold"))
    if note:
        console.print(Text(note, style="yellow"))
    for label, text, color in (("visible", lenient.visible, "green"), ("hidden", lenient.hidden, "magenta")):
        body: Any = Text("none", style="dim") if text is None else Text(safe(text))
        console.print(Panel(body, title=label, title_align="left", border_style=color))
