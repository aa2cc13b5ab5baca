"""The command line: names that no topic carries, files that are broken, and who may read what it writes."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from commands.cli import COMMANDS, loaded, main
from routing.tenancy.audit import AuditLog
from routing.tenancy.registry import Registry
from runtime import clock
from tests.support.gateway import free_port

BAD_NAMES = ["", "no such tenant!", "a/b", "../../../escaped", "#", "+", "é", "x" * 129]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def headworks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Run a command in this process; return its exit code and what it said."""
    before = os.umask(0o022)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["headworks", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        code, error = ended.value.code, captured.err
        if isinstance(code, str):  # as the interpreter prints it when it ends
            code, error = 1, f"{error}{code}\n"
        return int(code or 0), captured.out, error

    yield run
    os.umask(before)


@pytest.mark.parametrize(
    "command",
    [
        "tenants add NAME",
        "tenants suspend NAME",
        "tenants resume NAME",
        "devices add NAME d",
        "devices add t good NAME",
        "devices suspend t NAME",
        "devices resume NAME d",
        "keys add NAME d",
        "keys add t NAME",
    ],
)
def test_a_name_that_no_topic_carries_is_refused(tmp_path: Path, headworks: Run, command: str) -> None:
    for name in BAD_NAMES if command == "keys add t NAME" else ("no such tenant!", "a/b"):
        arguments = [name if word == "NAME" else word for word in command.split()]
        code, out, error = headworks(*arguments, "--data-dir", str(tmp_path))
        assert (code, out) == (2, "")
        words = error.replace("│", " ").split()
        assert "not a name: 1 to 128 of A-Z" in " ".join(words)
    assert not (tmp_path / "registry.db").exists()


def test_a_list_of_devices_with_a_bad_name_is_refused_with_its_line(tmp_path: Path, headworks: Run) -> None:
    names = tmp_path / "names.txt"
    names.write_text("one\n\ntwo\nthree four\n")
    assert headworks("tenants", "add", "t", "--data-dir", str(tmp_path))[0] == 0
    code, _, error = headworks("devices", "import", "t", str(names), "--data-dir", str(tmp_path))
    assert code == 1
    assert f"{names}:4: 'three four' is not a name" in error
    assert Registry(tmp_path / "registry.db").devices("t") == []
    names.write_bytes(b"\xff\xfe")
    assert headworks("devices", "import", "t", str(names), "--data-dir", str(tmp_path))[0] == 1


@pytest.mark.parametrize("kind", ["device", "gateway"])
def test_a_certificate_is_for_names_and_stays_in_its_folder(
    tmp_path: Path, headworks: Run, kind: str
) -> None:
    folder = tmp_path / "a" / "b" / "pki"
    assert headworks("pki", "init", "--dir", str(folder))[0] == 0
    before = sorted(tmp_path.rglob("*"))
    for name in (*BAD_NAMES, ".", "..", "a:b", "x" * 65):
        for arguments in ((name, "x"), ("t", name)):
            code, _, error = headworks("pki", kind, *arguments, "--dir", str(folder))
            assert code == 1
            assert error.startswith("headworks: ")
            assert "is not a name for a certificate" in error
    assert sorted(tmp_path.rglob("*")) == before
    assert headworks("pki", kind, "t", "x" * 64, "--dir", str(folder))[0] == 0


@pytest.mark.parametrize("host", ["", "two words", "ü.example", "a..b", "x" * 64 + ".example"])
def test_a_server_certificate_is_for_hosts(tmp_path: Path, headworks: Run, host: str) -> None:
    headworks("pki", "init", "--dir", str(tmp_path))
    code, _, error = headworks("pki", "server", "localhost", host, "--dir", str(tmp_path))
    assert (code, error) == (1, f"headworks: {host!r} is no host name and no address\n")
    long = ".".join(["x" * 60] * 3)
    assert headworks("pki", "server", long, "*.example.com", "::1", "--dir", str(tmp_path))[0] == 0


def break_as_folder(path: Path) -> None:
    path.mkdir()


def break_as_garbage(path: Path) -> None:
    path.write_bytes(b"no database" * 500)


@pytest.mark.parametrize("broken", [break_as_folder, break_as_garbage])
@pytest.mark.parametrize(
    "command", ["tenants list", "tenants add t", "devices suspend t d", "keys add t d", "keys rotate k"]
)
def test_a_registry_that_cannot_be_read_is_one_line(
    tmp_path: Path, headworks: Run, broken: Callable[[Path], None], command: str
) -> None:
    broken(tmp_path / "registry.db")
    code, _, error = headworks(*command.split(), "--data-dir", str(tmp_path))
    assert code == 1
    assert error.startswith(f"headworks: cannot open {tmp_path / 'registry.db'}: ")
    assert error.count("\n") == 1


def test_a_node_with_a_broken_registry_does_not_start_and_the_doctor_sees_it(
    tmp_path: Path, headworks: Run
) -> None:
    config = tmp_path / "headworks.toml"
    mqtt = f'protocol = "mqtt"\nbind = "127.0.0.1:{free_port()}"\ntls = "off"\nauth = ["topic"]'
    data = tmp_path / "data"
    config.write_text(
        f'[[listeners]]\n{mqtt}\n[node]\ndata_dir = "{data}"\n[admin]\nbind = "127.0.0.1:{free_port()}"\n'
    )
    data.mkdir()
    break_as_garbage(data / "registry.db")
    code, out, _ = headworks("doctor", "--config", str(config), "--json")
    assert code == 1
    assert '"check":"registry","ok":false' in out
    code, _, error = headworks("serve", "--config", str(config))
    assert (code, error.count("\n")) == (1, 1)
    assert "registry.db" in error


@pytest.mark.parametrize("what", ["folder", "key"])
def test_a_ca_that_cannot_be_read_is_one_line(tmp_path: Path, headworks: Run, what: str) -> None:
    folder = tmp_path / "pki"
    if what == "key":
        headworks("pki", "init", "--dir", str(folder))
        (folder / "ca.key").write_text("no key")
    else:
        folder.write_text("no folder")
    code, _, error = headworks("pki", "init", "--dir", str(folder))
    assert (code, error.count("\n")) == (1, 1)
    assert error.startswith("headworks: ")


def test_a_key_that_has_ended_is_not_rotated(tmp_path: Path, headworks: Run) -> None:
    where = ("--data-dir", str(tmp_path))
    _, out, _ = headworks("keys", "add", "t", "d", "--days", "1", *where)
    key_id = out.split("_")[1]
    code, rotated, _ = headworks("keys", "rotate", key_id, *where)
    assert (code, rotated.split("_")[1]) == (0, key_id)
    registry = Registry(tmp_path / "registry.db")
    for secret in (out, rotated):
        assert registry.key_of(secret.strip(), clock.unix_s()) is not None, "both are good for a day"
    assert headworks("keys", "rotate", key_id, "--overlap-hours", "0", *where)[0] == 0
    for secret in (out, rotated):
        assert registry.key_of(secret.strip(), clock.unix_s()) is None
    registry._change("UPDATE api_keys SET expires_s = 1 WHERE id = ?", (key_id,))
    code, _, error = headworks("keys", "rotate", key_id, *where)
    assert code == 1
    assert "has ended" in error


def test_a_key_for_the_api_has_scopes_and_a_plan(tmp_path: Path, headworks: Run) -> None:
    where = ("--data-dir", str(tmp_path))
    code, out, _ = headworks(
        "keys", "issue", "*", "jo", "--scopes", "devices:read, telemetry:read", "--plan", "gold", *where
    )
    assert code == 0
    registry = Registry(tmp_path / "registry.db")
    key = registry.key_of(out.strip(), clock.unix_s())
    assert key is not None
    assert (key.tenant, key.kind, key.scopes) == ("*", "caller", ("devices:read", "telemetry:read"))
    registry.flush_use()
    assert "gold" in headworks("keys", "list", *where)[1]
    [listed] = json.loads(headworks("keys", "list", "--json", *where)[1])
    assert listed["last_used_s"] > 0
    assert out.split("_")[2].strip() not in json.dumps(listed)
    code, _, error = headworks("keys", "issue", "t", "jo", "--scopes", "everything", *where)
    assert code == 1
    assert "resource:action" in error
    assert headworks("keys", "issue", "**", "jo", "--scopes", "a:b", *where)[0] == 2


def test_an_audit_log_is_verified_against_a_head_that_was_noted(tmp_path: Path, headworks: Run) -> None:
    where = ("--data-dir", str(tmp_path))
    assert headworks("audit", "verify", *where)[0] == 1, "there is none"
    log = AuditLog(tmp_path / "audit.db")
    for number in range(3):
        log.append(actor="jo", tenant="t", action="suspend", subject=f"d/{number}", now_s=float(number))
    code, head, _ = headworks("audit", "verify", *where)
    assert (code, head.strip()) == (0, ":".join(map(str, log.head())))
    log.append(actor="jo", tenant="t", action="resume", subject="d/1", now_s=4.0)
    assert headworks("audit", "verify", "--head", head.strip(), *where)[0] == 0
    assert headworks("audit", "verify", "--head", "2:00", *where)[0] == 1
    assert headworks("audit", "verify", "--head", "two", *where)[0] == 2
    with sqlite3.connect(tmp_path / "audit.db") as connection:
        connection.execute("UPDATE entries SET actor = 'nobody' WHERE number = 2")
    connection.close()
    code, _, error = headworks("audit", "verify", *where)
    assert (code, error) == (1, "headworks: entry 2 is not as it was written\n")


def test_what_a_command_writes_is_for_its_user_alone(tmp_path: Path, headworks: Run) -> None:
    headworks("keys", "add", "t", "d", "--data-dir", str(tmp_path))
    headworks("pki", "init", "--dir", str(tmp_path / "pki"))
    headworks("pki", "device", "t", "d", "--dir", str(tmp_path / "pki"))
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    public = {"ca.crt", "crl.pem", "d.crt"}
    assert {name for name, mode in modes.items() if mode & 0o077} == public
    assert {modes[name] for name in public} == {0o644}
    assert modes["registry.db"] == 0o600


@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_said_of_a_command_before_it_is_loaded_is_what_it_says_itself(name: str) -> None:
    said = loaded(name).help.partition("\n\n")[0]
    assert " ".join(said.split()) == COMMANDS[name]


def test_help_loads_no_command(headworks: Run) -> None:
    code, out, _ = headworks("--help")
    assert code == 0
    assert all(name in out for name in COMMANDS)
    program = (
        "import sys, commands.cli; sys.exit(any(name in sys.modules for name in ('aiohttp', 'botocore')))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_command_that_there_is_not_is_named(headworks: Run) -> None:
    code, _, error = headworks("sreve")
    assert code == 2
    assert "sreve" in error
