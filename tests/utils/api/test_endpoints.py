from pathlib import Path

import pytest

from utils.api.endpoints import NO_KEY, Endpoint, Key, key_of, parse_endpoint, warn_of_key_in_the_open
from utils.api.options import ApiOptions
from utils.errors import UserError

OPENAI = Endpoint("openai", "gpt-5-mini")


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "TOGETHER_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "spec, base_url, expected",
    [
        ("openai:gpt-5-mini", None, OPENAI),
        ("anthropic:claude-x", None, Endpoint("anthropic", "claude-x")),
        ("openai:org/name:7b", None, Endpoint("openai", "org/name:7b")),
        ("openai:m@http://127.0.0.1:8000/v1/", None, Endpoint("openai", "m", "http://127.0.0.1:8000/v1")),
        ("openai:m", "http://localhost:1/v1", Endpoint("openai", "m", "http://localhost:1/v1")),
        ("openai:m@http://a.example/v1", "http://b.example/v1", Endpoint("openai", "m", "http://a.example/v1")),
    ],
)
def test_a_spec_is_an_endpoint(spec: str, base_url: str | None, expected: Endpoint) -> None:
    assert parse_endpoint(spec, base_url, "--teacher") == expected


@pytest.mark.parametrize(
    "spec, words",
    [
        ("gpt-5-mini", "write openai:MODEL or anthropic:MODEL"),
        ("google:gemini", "write openai:MODEL or anthropic:MODEL"),
        ("openai:", "there is no model"),
        ("openai:@http://x/v1", "there is no model"),
        ("openai:m@", "is no URL"),
        ("openai:m@ftp://host/v1", "is no URL"),
        ("openai:m@http://host:99999/v1", "is no URL"),
        ("openai:m@http://user:sk-secret@host/v1", "an address alone"),
        ("openai:m@http://host/v1?key=sk-secret", "an address alone"),
    ],
)
def test_a_wrong_spec_is_refused_under_the_name_of_its_option(spec: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_endpoint(spec, None, "--judge")
    assert str(caught.value).startswith("--judge ") and words in str(caught.value)
    assert "sk-secret" not in str(caught.value)


def test_a_wrong_base_url_is_refused_without_what_it_holds() -> None:
    with pytest.raises(UserError, match="--base_url for --teacher openai:m: it is to be an address alone") as caught:
        parse_endpoint("openai:m", "http://sk-secret:x@host/v1", "--teacher")
    assert "sk-secret" not in str(caught.value)


@pytest.mark.parametrize(
    "spec, variable",
    [
        ("openai:m", "OPENAI_API_KEY"),
        ("anthropic:m", "ANTHROPIC_API_KEY"),
        ("openai:m@https://api.together.xyz/v1", "TOGETHER_API_KEY"),
        ("openai:m@https://api.together.xyz.example/v1", "OPENAI_API_KEY"),
    ],
)
def test_the_key_is_that_of_the_provider_or_of_the_host(
    spec: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = parse_endpoint(spec, None, "--teacher")
    with pytest.raises(UserError, match=f"{variable}.*--api_key_file"):
        key_of(endpoint, ApiOptions())
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "TOGETHER_API_KEY"):
        monkeypatch.setenv(name, f"of-{name}")
    assert key_of(endpoint, ApiOptions()).value == f"of-{variable}"


def test_a_server_on_this_machine_needs_no_key_and_takes_one(monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = parse_endpoint("openai:m@http://127.0.0.1:1/v1", None, "--teacher")
    assert key_of(endpoint, ApiOptions()).value == NO_KEY
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    assert key_of(endpoint, ApiOptions()).value == "sk-1"


def test_a_file_holds_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-environment")
    file = tmp_path / "key"
    file.write_text("sk-of-the-file\n")
    assert key_of(OPENAI, ApiOptions(api_key_file=str(file))).value == "sk-of-the-file"
    file.write_text("sk-one\nsk-two\n")
    with pytest.raises(UserError, match="expected one key") as caught:
        key_of(OPENAI, ApiOptions(api_key_file=str(file)))
    assert "sk-one" not in str(caught.value)
    with pytest.raises(UserError, match="cannot be read"):
        key_of(OPENAI, ApiOptions(api_key_file=str(tmp_path / "none")))
    with pytest.raises(UserError, match="exclude each other"):
        key_of(OPENAI, ApiOptions(api_key="a", api_key_file=str(file)))


def test_a_key_on_the_command_line_works_with_a_warning_that_does_not_show_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    warn_of_key_in_the_open.cache_clear()
    endpoint = Endpoint("openai", "m", "https://a-host-of-its-own.example/v1")
    assert key_of(endpoint, ApiOptions(api_key="sk-secret")).value == "sk-secret"
    said = capsys.readouterr().err
    assert "sk-secret" not in said
    assert "list of processes" in said


def test_neither_a_key_nor_the_options_show_it() -> None:
    key = Key("sk-secret")
    assert "sk-secret" not in f"{key} {key!r} {[key]} {ApiOptions(api_key='sk-secret')}"
    assert key.hidden_in("refused: sk-secret!") == "refused: ...!"
