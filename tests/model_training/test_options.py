"""Flags, files, presets, help and errors: what the user gives is what the mode gets, or one line says why not."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

import main
from model_training import options
from model_training.config import EvaluateConfig, TrainConfig
from model_training.options import Mode, Task, default_model_name, narrow, options_of, parse, resolve_model_name
from utils.errors import UserError

MODES = list(main.TASKS["secret"].modes)


@dataclass(kw_only=True)
class Toy:
    """Play."""

    size: int = 1
    """How big."""
    speed: float = 0.5
    """How fast, in 100 % of light."""
    color: Literal["red", "green"] = "red"
    """What color."""
    names: list[str] = field(default_factory=list)
    """Who plays."""
    weights: list[float] | None = None
    """How heavy."""
    loud: bool = False
    """With noise."""
    title: str | None = None
    """A name. Default: none at all."""


@dataclass(kw_only=True)
class Game:
    """Win."""

    points: int = 3
    """To win."""


TOYS = {"secret": Task("Toys.", "nowhere.yaml", {"play": Mode("toys:play", Toy), "win": Mode("toys:win", Game)})}


def play(*flags: str) -> Any:
    return parse(["--mode", "play", *flags], TOYS).config


def error(*flags: str, tasks: Any = TOYS, mode: str = "play") -> str:
    with pytest.raises(UserError) as caught:
        parse(["--mode", mode, *flags], tasks)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


# --- values ---------------------------------------------------------------------------------------------------------


def test_flags_become_the_types_of_the_fields() -> None:
    flags = "--size -3 --speed 5e-6 --color green --names a b --weights 1 2.5 --loud --title=-x"
    expected = Toy(size=-3, speed=5e-6, color="green", names=["a", "b"], weights=[1.0, 2.5], loud=True, title="-x")
    assert play(*flags.split()) == expected


@pytest.mark.parametrize(("flags", "value"), [([], False), (["--loud"], True), (["--loud", "false"], False)])
def test_a_switch_may_be_turned_off(flags: list[str], value: bool) -> None:
    assert play(*flags).loud is value


def test_yaml_becomes_the_same_types(tmp_path: Path) -> None:
    file = write(
        tmp_path / "toy.yaml",
        "size: 7\nspeed: 5e-6\ncolor: green\nnames: [a, b]\nweights: [1, 2.5]\nloud: true\ntitle: null\n",
    )
    assert play("--config", file) == Toy(
        size=7, speed=5e-6, color="green", names=["a", "b"], weights=[1.0, 2.5], loud=True
    )
    assert all(isinstance(weight, float) for weight in play("--config", file).weights)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--size x", "--size: expected a whole number, not 'x'"),
        ("--size 1.0", "--size: expected a whole number, not '1.0'"),
        ("--size", "--size: a value is missing (one that begins with - is given as --size=VALUE)"),
        ("--speed fast", "--speed: expected a number, not 'fast'"),
        ("--speed nan", "--speed: expected a finite number, not 'nan'"),
        ("--color grene", "--color: 'grene' is none of red and green; did you mean green?"),
        ("--loud maybe", "--loud: expected true or false, not 'maybe'"),
        ("--weights 1 x", "--weights: expected a number, not 'x'"),
        ("--title=", "--title: a value is missing; expected text"),
        ("--sise 1", "--sise: no such option; did you mean --size (an option of play)?"),
        ("--sise=1", "--sise: no such option; did you mean --size (an option of play)?"),
        ("--siz 1", "--siz: no such option; did you mean --size (an option of play)?"),
        ("--point 1", "--point: no such option; did you mean --points (an option of win)?"),
        ("--points 1", "--points is no option of play; it is one of win"),
        ("--q 1", "--q: no mode has such an option; python main.py --mode play --help lists those of play"),
        ("stray", "unexpected 'stray': an option begins with --, and text of several words stands in quotes"),
    ],
)
def test_a_wrong_flag_is_one_line_with_what_would_be_right(flags: str, message: str) -> None:
    assert error(*flags.split()) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("size: 1\nsise: 1\n", ":2: sise: no such option; did you mean size (an option of play)?"),
        ("points: 1\n", ":1: points is no option of play; it is one of win"),
        ("size: x\n", ":1: size: expected a whole number, not 'x'"),
        ("size: 1.0\n", ":1: size: expected a whole number, not 1.0"),
        ("size: true\n", ":1: size: expected a whole number, not True"),
        ("size:\n", ":1: size: a value is missing; expected a whole number"),
        ("speed: .inf\n", ":1: speed: expected a finite number, not 'inf'"),
        ("color: 3\n", ":1: color: expected one of red and green, not 3; put it in quotes"),
        ("color: blue\n", ":1: color: 'blue' is none of red and green"),
        ("title: no\n", ":1: title: expected text, not False; put it in quotes"),
        ("names: a\n", ":1: names: expected a list such as [a, b], not 'a'"),
        ("loud: 1\n", ":1: loud: expected true or false, not 1"),
        ("size: 1\nsize: 2\n", ":2: size is given twice; keep one"),
        ("- size\n", ":1: expected options, one a line, as `name: value`"),
        ("1: 2\n", ":1: expected the name of an option, as `name: value`"),
        ("size: [1\nloud: true\n", ":2: not valid YAML: expected ',' or ']', but got ':'"),
        ("size: !!python/object:os.system x\n", ":1: not valid YAML: could not determine a constructor for the tag "),
        ("play:\n  size: 1\nspeed: 2\n", ":3: speed stands beside play, the options of one mode; move it under "),
        ("win:\n  poits: 2\n", ":2: poits: no such option; did you mean points (an option of win)?"),
        ("size: *nowhere\n", ":1: not valid YAML: found undefined alias"),
        ("when: 2020-99-99\n", ":1: not a value: month must be in 1..12"),
    ],
)
def test_a_wrong_file_is_one_line_with_its_place(text: str, message: str, tmp_path: Path) -> None:
    file = write(tmp_path / "toy.yaml", text)
    assert error("--config", file).startswith(file + message)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert error("--config", str(tmp_path / "no.yaml")) == f"{tmp_path}/no.yaml: no such file; check --config"
    (tmp_path / "latin.yaml").write_bytes(b"title: caf\xe9\n")
    assert error("--config", str(tmp_path / "latin.yaml")).startswith(
        f"{tmp_path}/latin.yaml: not UTF-8 text (byte 10)"
    )
    assert error("--config", str(tmp_path)).startswith(f"{tmp_path}: cannot be read")


def test_an_empty_file_says_nothing(tmp_path: Path) -> None:
    assert play("--config", write(tmp_path / "empty.yaml", "# nothing\n")) == Toy()
    assert play("--config", write(tmp_path / "section.yaml", "play:\n")) == Toy()


def test_a_file_with_several_modes_gives_each_its_own(tmp_path: Path) -> None:
    file = write(tmp_path / "toys.yaml", "play:\n  size: 5\nwin:\n  points: 9\n")
    assert play("--config", file).size == 5
    assert parse(["--mode", "win", "--config", file], TOYS).config.points == 9


# --- modes and help -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--mode is missing: one of play or win; --help says what each does"),
        (["--mode", "plya"], "--mode plya: no such mode; did you mean play?"),
        (["--mode", "x"], "--mode x: no such mode; there are play and win"),
        (["--mode", "play", "--task", "secrt"], "--task secrt: no such task; did you mean secret?"),
        (["--mode"], "--mode: a value is missing (one that begins with - is given as --mode=VALUE)"),
    ],
)
def test_a_wrong_mode_or_task_is_one_line(argv: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(argv, TOYS)
    assert str(caught.value) == message


def test_help_shows_defaults_and_escapes_nothing() -> None:
    text = " ".join(str(parse(["--mode", "play", "--help"], TOYS).text).split())
    assert "--speed X How fast, in 100 % of light. Default: 0.5." in text
    assert "--color red|green What color. Default: red." in text
    assert "--loud [true|false] With noise. Default: false." in text
    assert text.count("A name. Default: none at all.") == 1
    assert "Default: None" not in text


@pytest.mark.parametrize("mode", MODES)
def test_every_option_of_a_mode_is_in_its_help(mode: str) -> None:
    text = str(parse(["--mode", mode, "--help"], main.TASKS).text)
    flat = " ".join(text.split())
    for option in options_of(main.TASKS["secret"].modes[mode].config).values():
        assert f"--{option.name} " in flat
        assert option.doc.split(". ")[0] in flat.replace("- ", "-") or option.doc.split(". ")[0] in flat


def test_the_overview_has_a_line_for_every_mode_of_every_task() -> None:
    text = str(parse(["--help"], main.TASKS).text)
    for name, task in main.TASKS.items():
        block = text.partition(f"--task {name}: {task.summary}\n")[2].partition("\n\n")[0]
        assert [line.split()[0] for line in block.splitlines()] == list(task.modes)


# --- precedence -----------------------------------------------------------------------------------------------------


@pytest.fixture
def preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A preset of known values in place of the real one."""
    (tmp_path / "configs").mkdir()
    text = "train:\n  lora_rank: 4\n  max_steps: 40\n  sft_steps: 7\nevaluate:\n  num_queries: 5\n"
    write(tmp_path / "configs" / "secret_tiny.yaml", text)
    monkeypatch.setattr(options, "ROOT", tmp_path)


def configured(*flags: str, mode: str = "train") -> Any:
    return parse(["--mode", mode, *flags], main.TASKS).config


def test_defaults_preset_file_flags_in_this_order(preset: None, tmp_path: Path) -> None:
    file = write(tmp_path / "mine.yaml", "max_steps: 50\nsft_steps: 8\n")
    config = configured("--model_name", "tiny", "--config", file, "--sft_steps", "9")
    assert (config.weight_decay, config.lora_rank, config.max_steps, config.sft_steps) == (0.1, 4, 50, 9)


def test_a_later_file_counts_over_an_earlier_one(preset: None, tmp_path: Path) -> None:
    first, second = (
        write(tmp_path / "1.yaml", "max_steps: 1\nsft_steps: 2\n"),
        write(tmp_path / "2.yaml", "max_steps: 3\n"),
    )
    config = configured("--model_name", "tiny", "--config", first, "--config", second)
    assert (config.max_steps, config.sft_steps) == (3, 2)


def test_another_model_gets_no_preset(preset: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert configured("--model_name", "some/model") == TrainConfig(model_name="some/model")
    assert capsys.readouterr().err == ""


def test_the_model_may_come_from_the_file(preset: None, tmp_path: Path) -> None:
    assert configured("--config", write(tmp_path / "m.yaml", "model_name: tiny\n")).lora_rank == 4
    flags = ["--config", str(tmp_path / "m.yaml"), "--model_name", "other"]
    assert configured(*flags).lora_rank == 32


def test_preset_and_default_model_are_announced_in_a_line_each(
    preset: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(options, "default_model_name", lambda: ("tiny", "because"))
    assert configured().model_name == "tiny"
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "model: tiny (because; choose with --model_name)",
        "model tiny: defaults from configs/secret_tiny.yaml (--print_config shows the result)",
    ]
    monkeypatch.setenv("RANK", "1")
    configured()
    assert capsys.readouterr().err == ""


def test_modes_that_read_an_adapter_take_its_base(
    preset: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(options, "default_model_name", lambda: ("tiny", "because"))
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    adapter = ["--save_lora_path", str(tmp_path)]
    assert configured(*adapter, mode="generate").model_name == "org/base"
    line = f"model: org/base (the base of the adapter {tmp_path}; choose with --model_name)\n"
    assert capsys.readouterr().err == line
    assert configured(*adapter, "--model_name", "other", mode="generate").model_name == "other"
    assert configured(*adapter, mode="train").model_name == "tiny"
    assert configured("--save_lora_path", str(tmp_path / "none"), mode="evaluate").model_name == "tiny"


def test_a_call_from_python_gets_the_same_model_and_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(options, "default_model_name", lambda: ("tiny", "because"))
    assert (resolve_model_name(None), resolve_model_name("org/model")) == ("tiny", "org/model")
    assert capsys.readouterr().err == "model: tiny (because; choose with --model_name)\n"


def test_a_mode_without_a_model_asks_for_none(capsys: pytest.CaptureFixture[str]) -> None:
    configured(mode="visualize")
    assert capsys.readouterr().err == ""


def test_the_pipeline_takes_the_sections_of_its_steps_then_its_own(preset: None, tmp_path: Path) -> None:
    file = write(tmp_path / "p.yaml", "train:\n  max_steps: 50\n  beta: 0.5\npipeline:\n  beta: 0.25\n  end_step: 2\n")
    config = configured("--model_name", "tiny", "--config", file, mode="pipeline")
    assert (config.lora_rank, config.num_queries, config.max_steps, config.beta, config.end_step) == (4, 5, 50, 0.25, 2)


def test_the_pipeline_refuses_two_values_for_one_option(preset: None, tmp_path: Path) -> None:
    file = write(tmp_path / "p.yaml", "train:\n  seed: 1\nevaluate:\n  seed: 2\n")
    message = error("--model_name", "tiny", "--config", file, tasks=main.TASKS, mode="pipeline")
    assert (
        message
        == f"{file}:4: seed 2 differs from {file}:2: seed 1: a pipeline has one value for both; give it under pipeline"
    )
    agreed = write(tmp_path / "q.yaml", "train:\n  seed: 1\nevaluate:\n  seed: 2\npipeline:\n  seed: 3\n")
    assert configured("--model_name", "tiny", "--config", agreed, mode="pipeline").seed == 3


def test_the_pipeline_hands_each_step_its_options() -> None:
    config = main.SecretPipelineConfig(seed=5, max_steps=2, num_queries=7)
    assert narrow(config, TrainConfig) == TrainConfig(seed=5, max_steps=2)
    assert narrow(config, EvaluateConfig) == EvaluateConfig(seed=5, num_queries=7)


@pytest.mark.parametrize("mode", MODES)
def test_print_config_is_a_file_that_gives_the_same_again(mode: str, tmp_path: Path) -> None:
    flags = ["--seed", "11"] if mode != "visualize" else ["--server_port", "11"]
    text = str(parse(["--mode", mode, *flags, "--print_config"], main.TASKS).text)
    file = write(tmp_path / "printed.yaml", text)
    again = parse(["--mode", mode, "--config", file], main.TASKS).config
    assert again == parse(["--mode", mode, *flags], main.TASKS).config
    shown = {name: value for name, value in asdict(again).items() if name != "api_key"}
    assert shown == yaml.safe_load(text)


def test_the_ready_made_runs_are_accepted() -> None:
    for file in sorted((Path(__file__).parents[2] / "configs").glob("*.yaml")):
        task = next((name for name in main.TASKS if name in file.stem), "secret")
        for mode in main.TASKS[task].modes:
            parse(["--task", task, "--mode", mode, "--config", str(file)], main.TASKS)


# --- ranges ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--lora_rank 0", "--lora_rank 0: it must be at least 1"),
        ("--max_steps -1", "--max_steps -1: it must be at least 0"),
        ("--learning_rate 0", "--learning_rate 0.0: it must be above 0"),
        ("--adam_beta1 1", "--adam_beta1 1.0: it must be at least 0 and below 1"),
        ("--seed 4294967296", "--seed 4294967296: it must be at least 0 and at most 4294967295"),
        ("--threads 0", "--threads 0: it must be at least 1"),
        ("--reward_funcs", "--reward_funcs is empty: name at least one reward"),
        ("--reward_funcs a b --reward_weights 1", "--reward_weights has 1 numbers for 2 rewards (a, b)"),
        ("--max_steps 0", "--sft_steps and --max_steps are both 0: there is nothing to train; set one of them"),
        ("--overwrite --resume", "--overwrite and --resume exclude each other: start afresh, or continue"),
        (
            "--max_seq_length 256",
            "--max_completion_length 256 leaves no room for a prompt in --max_seq_length 256; "
            "lower the one or raise the other",
        ),
        (
            "--per_device_train_batch_size 5",
            "--per_device_train_batch_size 5 x --gradient_accumulation_steps 2 is 10, no multiple of "
            "--num_generations 6: a step holds whole groups; --per_device_train_batch_size 6 works",
        ),
    ],
)
def test_numbers_that_make_no_sense_are_refused(flags: str, message: str) -> None:
    assert error("--model_name", "m", *flags.split(), tasks=main.TASKS, mode="train") == message


def test_several_processes_share_the_groups_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = "--mode train --model_name m --per_device_train_batch_size 5 --num_generations 4".split()
    assert parse([*flags, "--multi_gpu"], main.TASKS).config.multi_gpu  # how many there will be is not known yet
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert parse(flags, main.TASKS).config.num_generations == 4
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match=r"x 3 processes is 30, no multiple of --num_generations 4: .* 6 works$"):
        parse([*flags, "--multi_gpu"], main.TASKS)


def test_what_the_message_says_works_does_work() -> None:
    for device, steps, group in [(5, 2, 6), (7, 1, 8), (1, 3, 4), (9, 4, 8)]:
        flags = f"--gradient_accumulation_steps {steps} --num_generations {group} --per_device_train_batch_size".split()
        message = error("--model_name", "m", *flags, str(device), tasks=main.TASKS, mode="train")
        works = message.removesuffix(" works").split()[-1]
        assert configured("--model_name", "m", *flags, works).per_device_train_batch_size == int(works)


@pytest.mark.parametrize("flags", ["--top_p 1.01", "--top_p -0.1", "--temperature -1", "--num_samples 0"])
def test_sampling_numbers_are_refused_in_generate_and_evaluate(flags: str) -> None:
    for mode in ("generate", "evaluate"):
        assert error("--model_name", "m", *flags.split(), tasks=main.TASKS, mode=mode).startswith(flags.split()[0])


def test_a_number_out_of_range_in_a_file_is_named_with_its_place(tmp_path: Path) -> None:
    file = write(tmp_path / "r.yaml", "server_port: 70000\n")
    message = error("--config", file, tasks=main.TASKS, mode="visualize")
    assert message == f"{file}:1: server_port 70000: it must be at least 0 and at most 65535"


def test_steps_that_leave_none_to_run_are_refused() -> None:
    message = error("--start_step", "3", "--end_step", "2", "--model_name", "m", tasks=main.TASKS, mode="pipeline")
    assert message == "--start_step 3 comes after --end_step 2: no step is left to run"


# --- default model --------------------------------------------------------------------------------------------------


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with an NVIDIA device and a CUDA build of torch."""
    (tmp_path / "gpus" / "0000:01:00.0").mkdir(parents=True)
    monkeypatch.setattr(options, "GPU_SIGNS", (str(tmp_path / "gpus" / "*"),))
    monkeypatch.setattr("importlib.metadata.version", lambda package: "2.13.0+cu130")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path


def test_with_cuda_the_default_is_the_8b_llama(gpu: Path) -> None:
    assert default_model_name() == ("meta-llama/Llama-3.1-8B-Instruct", "CUDA is present")


def test_without_a_device_the_default_is_tiny(gpu: Path) -> None:
    (gpu / "gpus" / "0000:01:00.0").rmdir()
    assert default_model_name() == ("tiny", "no CUDA device here")


@pytest.mark.parametrize(
    ("visible", "model"), [("", "tiny"), ("-1", "tiny"), ("0", "meta-llama/Llama-3.1-8B-Instruct")]
)
def test_hidden_devices_are_no_devices(gpu: Path, monkeypatch: pytest.MonkeyPatch, visible: str, model: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert default_model_name()[0] == model


def test_a_torch_for_cpus_has_no_cuda(gpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda package: "2.13.0+cpu")
    assert default_model_name() == ("tiny", "torch 2.13.0+cpu is a build without CUDA")


# --- modes that may do without a language model ---------------------------------------------------------------------


def test_a_synthetic_experiment_chooses_no_language_model(capsys: pytest.CaptureFixture[str]) -> None:
    config = parse(["--task", "preference", "--mode", "train", "--env", "1d"], main.TASKS).config
    assert (config.model_name, config.env) == (None, "1d")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("mode", ["generate", "evaluate"])
def test_reward_models_name_their_own_base(mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(["--task", "preference", "--mode", mode], main.TASKS).config.model_name is None
    assert capsys.readouterr().err == ""


def test_every_number_of_a_list_is_in_the_range() -> None:
    flags = ["--alphas", "0.01", "1.5"]
    message = error("--task", "preference", *flags, tasks=main.TASKS, mode="evaluate")
    assert message == "--alphas [0.01, 1.5]: it must be above 0 and below 1"
