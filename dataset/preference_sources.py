"""Preference pairs from files, folders and the hub, each with the split and the subset it belongs to.

    pairs = load_pairs(["preference_pairs.jsonl"], "both", skip_invalid=False)
    pairs = load_pairs(["data/relabeled_hh_rlhf"], "harmless", skip_invalid=True)
    pairs = load_pairs(["Anthropic/hh-rlhf"], "both", skip_invalid=True)

What comes back is in the standard form of `dataset.pair_forms`, all texts or all conversations; no pair is read twice.

**A folder** is read as the files `train`, `validation` and `test` in it, where there are any; else as its sub-folders:
`both` for both subsets, or, where there is none, `helpful` and `harmless` (in a copy of HH-RLHF `helpful-base` and
`harmless-base`, as the published code has it), each with such files; else as all the dataset files in it.

**The split** of a pair is its own field `split`; else the name of its file, if that is `train`, `validation` or `test`,
or ends in one of these words and both `..._train` and `..._test` are given; else the split of the hub, where it has
more than `train`. Of all other pairs, those of a `test_share` of the prompts are `test`, the rest `train`. A prompt's
side follows from its text alone, not from the seed or from what else is read: training and evaluation, whatever their
options, agree about it.

**The subset** (`data_subset`) of a pair is what its label asks for: the field `objective` (helpful or harmless) of the
relabelled data, whose own `data_subset`, where the pair came from, is kept as `source_subset` if it is another; else
the field `data_subset`; else the folder's name, if it begins with one of the two; else `both`, where nothing tells.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataset.pair_forms import pair_form, prompt_key, standard_form
from dataset.parsing import EXTENSIONS, Fault, Item, count_of, read_items
from dataset.records import SPLITS, Record, preference_validator, valid_records
from model_training.preference_config import WORLD
from utils.errors import UserError
from utils.hub import hub_reachable

SUBSETS = ("helpful", "harmless")
BOTH = "both"
HH_RLHF = "Anthropic/hh-rlhf"
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Part:
    """Pairs that stand together: a file, or a split of a hub dataset; None where it does not tell split or subset."""

    place: str
    items: Iterable[Item | Fault]
    split: str | None
    subset: str | None


def load_pairs(paths: Sequence[str], subset: str, *, skip_invalid: bool, test_share: float = 0.2) -> list[Record]:
    """The pairs of a subset (helpful, harmless or both), in the order of the paths, with `split` and `data_subset`.

    What is left out, and how many pairs were held out, is said on stderr.

    Raises:
        UserError: a source is not there, a record is faulty (without `skip_invalid`), forms are mixed, or no pair is of
            this subset.
    """
    if not 0 <= test_share <= 1:
        raise UserError(f"--test_share {test_share}: give a share from 0 to 1")
    parts = _parts(paths, subset)
    read: list[list[Record]] = []
    for part in parts:
        valid = valid_records(part.place, part.items, preference_validator(), skip_invalid=skip_invalid)
        read.append([_placed(standard_form(record), part) for record in valid])
    _refuse_mixed_forms(parts, read)
    _tell_ids_apart(read)
    pairs = _once(read)
    _hold_out(pairs, test_share)
    return of_subset(pairs, subset)


def of_subset(pairs: list[Record], subset: str) -> list[Record]:
    """The pairs of one subset, or of `both`; says how many are left out."""
    kept = [pair for pair in pairs if subset in (BOTH, pair["data_subset"])]
    if not kept:
        there = ", ".join(sorted({str(pair["data_subset"]) for pair in pairs}))
        raise UserError(f"--data_subset {subset}: no pair of the data is of this subset; it has: {there}")
    if len(kept) < len(pairs):
        _note(f"left out {count_of(len(pairs) - len(kept), 'pair')} that are not of --data_subset {subset}")
    return kept


# --- where the pairs are --------------------------------------------------------------------------------------------


def _parts(paths: Sequence[str], subset: str) -> list[Part]:
    """Every file and hub split that the paths name, each once."""
    if not paths:
        raise UserError("--data_path is empty: name a file, a folder or a hub dataset")
    files: list[Path] = []
    hub: list[Part] = []
    for path in paths:
        local = Path(path)
        if path == WORLD:
            raise UserError(
                f"--data_path {WORLD}: the micro-world's pairs are composed by --task preference --mode prepare_data, "
                "alone; give the dataset file that it wrote"
            )
        if local.is_dir():
            files += _folder_files(local, subset)
        elif local.exists() or local.name.endswith(EXTENSIONS):
            files.append(local)
        elif HUB_NAME.fullmatch(path):
            hub += _hub_parts(path, subset)
        else:
            raise UserError(
                f"--data_path {path}: there is no such file or folder, and a dataset of the hub is called OWNER/NAME; "
                "--task preference --mode prepare_data writes pairs"
            )
    files = list({file.resolve(): file for file in files}.values())
    splits = _named_splits(files)
    return [Part(str(f), read_items(f), splits[f], _named_subset(f.parent.name)) for f in files] + hub


def _folder_files(folder: Path, subset: str) -> list[Path]:
    """The dataset files of a folder, by its layout."""
    inside = _dataset_files(folder)
    named = [file for file in inside if _stem(file) in SPLITS]
    if named:
        return named
    folders = {entry.name for entry in folder.iterdir() if entry.is_dir()}
    if BOTH in folders and (subset == BOTH or not _subset_folder(folders, subset)):
        return _split_files(folder / BOTH)
    wanted = SUBSETS if subset == BOTH else (subset,)
    found = {each: _subset_folder(folders, each) for each in wanted}
    if any(found.values()):
        for each, name in found.items():
            if name is None:
                raise UserError(f"{folder}: there is no sub-folder {each} or {each}-base; choose another --data_subset")
        return [file for name in found.values() if name for file in _split_files(folder / name)]
    if inside:
        return inside
    raise UserError(
        f"{folder}: there are no pairs in this folder: no train or test file ({', '.join(EXTENSIONS)}), "
        f"no sub-folder {BOTH}, helpful or harmless, and no other dataset file"
    )


def _subset_folder(folders: set[str], subset: str) -> str | None:
    return next((name for name in (subset, f"{subset}-base") if name in folders), None)


def _split_files(folder: Path) -> list[Path]:
    files = [file for file in _dataset_files(folder) if _stem(file) in SPLITS]
    if not files:
        raise UserError(f"{folder}: there is no train or test file in it ({', '.join(EXTENSIONS)})")
    return files


def _dataset_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.name.endswith(EXTENSIONS) and file.name[0] != ".")


def _stem(file: Path) -> str:
    return file.name.partition(".json")[0]


def _named_splits(files: list[Path]) -> dict[Path, str | None]:
    """The split that the name of each file tells; see the module's docstring."""
    last_words = {file: re.split(r"[-_.]", _stem(file))[-1] for file in files}
    told_apart = {"train", "test"} <= set(last_words.values())
    return {
        file: word if word in SPLITS and (told_apart or _stem(file) == word) else None
        for file, word in last_words.items()
    }


def _named_subset(folder: str) -> str | None:
    return next((subset for subset in SUBSETS if folder.startswith(subset)), None)


# --- the hub --------------------------------------------------------------------------------------------------------


def _hub_parts(name: str, subset: str) -> list[Part]:
    """The splits of a hub dataset; of HH-RLHF, those of the sub-folders that the published code reads."""
    if name != HH_RLHF:
        return _hub_folder_parts(name, None, None)
    wanted = SUBSETS if subset == BOTH else (subset,)
    return [part for each in wanted for part in _hub_folder_parts(name, f"{each}-base", each)]


def _hub_folder_parts(name: str, folder: str | None, subset: str | None) -> list[Part]:
    loaded = _from_hub(name, folder)
    place = name if folder is None else f"{name} {folder}"
    splits = {split: split for split in loaded if split in SPLITS}
    splits = splits or {split: split.removesuffix("_prefs") for split in loaded if split.endswith("_prefs")}
    if not set(splits.values()) <= set(SPLITS) or not splits:
        raise UserError(
            f"--data_path {place}: its splits are {', '.join(loaded)}, not train, validation or test; "
            "save those you want as files, and give these"
        )
    parts = []
    for split, meaning in splits.items():
        rows = loaded[split]
        missing = [column for column in ("chosen", "rejected") if column not in rows.column_names]
        if missing:
            raise UserError(
                f"--data_path {place}: it has no column {' or '.join(missing)}, only {', '.join(rows.column_names)}; "
                "give a dataset of preference pairs"
            )
        items = (Item(number, None, dict(row)) for number, row in enumerate(rows, start=1))
        parts.append(Part(f"{place} {split}", items, None if list(splits) == ["train"] else meaning, subset))
    return parts


def _from_hub(name: str, folder: str | None) -> Any:
    """The dataset's splits by name. Without a network, what the cache holds, at once."""
    import datasets
    from datasets.exceptions import DatasetsError

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    reachable = hub_reachable()
    if not reachable:
        from huggingface_hub import constants

        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        return datasets.load_dataset(name, data_dir=folder)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        reason = str(error).strip().split("\n")[0]
        where = "the hub did not deliver it" if reachable else "the hub cannot be reached, and the cache has no copy"
        raise UserError(
            f"--data_path {name}: there is no such file or folder, and {where}: {reason}; "
            "check the name, the network, and HF_TOKEN for a gated dataset"
        ) from error


# --- what a pair is part of -----------------------------------------------------------------------------------------


def _placed(pair: Record, part: Part) -> Record:
    """The pair with its subset and, where its source tells one, its split."""
    subset = pair.get("data_subset") or part.subset or BOTH
    if pair.get("objective") in SUBSETS:
        source, subset = subset, pair["objective"]
        if pair.get("data_subset") and source != subset:
            pair["source_subset"] = source
    return {**pair, "data_subset": subset, "split": pair.get("split") or part.split}


def _refuse_mixed_forms(parts: list[Part], read: list[list[Record]]) -> None:
    forms = [pair_form(pairs[0]) for pairs in read]
    for part, form in zip(parts, forms, strict=True):
        if form != forms[0]:
            raise UserError(
                f"{part.place}: holds pairs of {form}s, and {parts[0].place} pairs of {forms[0]}s; "
                "give data of one form at a time"
            )


def _tell_ids_apart(read: list[list[Record]]) -> None:
    """Ids that occur in several parts are no names: put the part's number in front of all of them."""
    ids = [{pair["id"] for pair in pairs if isinstance(pair.get("id"), str | int)} for pairs in read]
    if len(set().union(*ids)) == sum(map(len, ids)):
        return
    for number, pairs in enumerate(read, start=1):
        for pair in pairs:
            if isinstance(pair.get("id"), str | int):
                pair["id"] = f"{number}-{pair['id']}"


def _once(read: list[list[Record]]) -> list[Record]:
    """All pairs; one that stands in several parts, of the same split and subset, is taken from the first alone."""
    first: dict[bytes, int] = {}
    kept: list[Record] = []
    for number, pairs in enumerate(read):
        for pair in pairs:
            said = repr([pair.get(name) for name in ("split", "data_subset", "prompt", "chosen", "rejected")])
            if first.setdefault(hashlib.sha256(said.encode("utf-8")).digest(), number) == number:
                kept.append(pair)
    twice = sum(map(len, read)) - len(kept)
    if twice:
        _note(f"left out {count_of(twice, 'pair')} that another file of the same split holds, too")
    return kept


def _hold_out(pairs: list[Record], test_share: float) -> None:
    """Give every pair without a split one by its prompt; a prompt that has a split keeps it."""
    without = [pair for pair in pairs if pair["split"] is None]
    if not without:
        return
    known: dict[str, str] = {}
    for pair in pairs:
        if pair["split"] is not None:
            key = prompt_key(pair)
            known[key] = min(pair["split"], known.get(key, pair["split"]), key=("train", "validation", "test").index)
    for pair in without:
        key = prompt_key(pair)
        drawn = int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64
        pair["split"] = known.get(key) or ("test" if drawn < test_share else "train")
    test = sum(pair["split"] == "test" for pair in without)
    _note(
        f"held out {test} of {count_of(len(without), 'pair')} as split test, whole prompts together: the data names "
        "no split for them"
    )


def _note(text: str) -> None:
    print(text, file=sys.stderr)
