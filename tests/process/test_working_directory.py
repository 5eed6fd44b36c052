"""`working_directory`: where a service runs, and where every reload of it starts, as its name leads then."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.clients.connections import ask
from tests.support.programs.command import HUNG, MODULE, ROOT, running
from tests.support.programs.releases import Released, numbered, release
from tests.support.programs.service import script

TARGET = """
import os
from prefork import StreamRequestHandler

class Where(StreamRequestHandler):
    def handle(self):
        self.wfile.write(f"{RELEASE} in {os.getcwd()}".encode())
"""


def app(folder: Path, number: int) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "app.py").write_text(f"RELEASE = 'r{number}'\n{TARGET}")
    return folder


def point(link: Path, folder: Path) -> None:
    """Move the symlink there in one step, as a deployment does."""
    new = link.with_name("next")
    new.symlink_to(folder)
    new.replace(link)


def answer(port: int) -> str:
    return ask(("127.0.0.1", port), b"").decode()


def prefork(here: Path, *argv: str) -> "subprocess.CompletedProcess[str]":
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([*MODULE, *argv], cwd=here, env=env, capture_output=True, text=True, timeout=HUNG)


def reload(folder: Path) -> "subprocess.CompletedProcess[str]":
    return prefork(folder, "ctl", "--control", str(folder / "c.sock"), "reload")


def test_a_symlink_that_moves_is_followed(tmp_path: Path) -> None:
    """The target is found in the directory; after a reload it is that of the release to which the symlink leads, though
    the first one is gone. One that is missing is a failed reload, and nothing changes."""
    first, second = app(tmp_path / "first", 1), app(tmp_path / "second", 2)
    current = tmp_path / "current"
    point(current, first)
    argv = ("run", "app:Where", "--bind", "127.0.0.1:0", "--max-children", "1", "--working-directory", str(current),
            "--control", f"unix:{tmp_path}/c.sock")  # fmt: skip
    with running(argv, cwd=tmp_path) as run:
        run.expect(f"reload failed: could not change to the directory {current}")
        assert answer(run.port) == f"r1 in {first}"
        point(current, second)
        shutil.rmtree(first)
        done = reload(tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert answer(run.port) == f"r2 in {second}"
        current.unlink()
        done = reload(tmp_path)
        assert done.returncode == 1
        assert f"could not change to the directory {current}: no such file or directory" in done.stdout + done.stderr
        assert answer(run.port) == f"r2 in {second}"
        point(current, app(tmp_path / "third", 3))
        assert reload(tmp_path).returncode == 0
        assert answer(run.port) == f"r3 in {tmp_path / 'third'}"


@pytest.mark.parametrize("source", ["option", "variable", "file"])
def test_everything_relative_is_found_there(source: str, tmp_path: Path) -> None:
    """Target, file and Unix path are of that directory, whoever says which it is."""
    folder = app(tmp_path / "app", 1)
    text = "[prefork]\ntarget = 'app:Where'\nbind = 'unix:s.sock'\nmax_children = 1\n"
    file = folder / "service.toml"
    argv = ["run", "--config", "service.toml"]
    if source == "file":
        argv[-1] = str(file)
        text += f"working_directory = '{folder}'\n"
    file.write_text(text)
    if source == "option":
        argv += ["--working-directory", str(folder)]
    variables = [f"PYTHONPATH={ROOT}"] + [f"PREFORK_WORKING_DIRECTORY={folder}"] * (source == "variable")
    with running(argv, cwd=tmp_path, program=("env", *variables, *MODULE)):
        assert ask(os.path.relpath(folder / "s.sock"), b"").decode() == f"r1 in {folder}"


WRONG = {
    "missing": (["--working-directory", "/nowhere"],
                "could not change to the directory /nowhere (from --working-directory): no such file or directory"),
    "a file": (["--working-directory", "{here}/app.py"],
               "could not change to the directory {here}/app.py (from --working-directory): not a directory"),
    "relative": (["--working-directory", "here"],
                 "could not set working_directory to 'here' (from --working-directory): it must be an absolute path, "
                 "or off"),
    "in a file named by a relative path": (
        ["--config", "s.toml"],
        "could not set working_directory (from s.toml: working_directory): a reload starts there, where s.toml means "
        "another file; name the file by its whole path"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("command", ["run", "check", "config"])
def test_what_cannot_be_is_one_sentence(case: str, command: str, tmp_path: Path) -> None:
    """Exit status 2, before anything is imported or bound."""
    app(tmp_path, 1)
    (tmp_path / "s.toml").write_text("[prefork]\nworking_directory = '/'\n")
    argv, sentence = WRONG[case]
    argv = [word.format(here=tmp_path) for word in argv]
    done = prefork(tmp_path, command, "app:Where", "--bind", "127.0.0.1:0", *argv)
    assert (done.returncode, done.stderr) == (2, f"prefork: {sentence.format(here=tmp_path)}\n")


TELLS = "class Hooks:\n    def worker_started(self):\n        tell('worker', here=os.getcwd())\n"


def test_a_class_may_say_it(tmp_path: Path) -> None:
    """A script serves in the directory that its class names; its relative path, which is of where it was started, is
    found again by a reload, and the release there is the one that the symlink leads to."""
    first, second, current = tmp_path / "first", tmp_path / "second", tmp_path / "current"
    for folder in (first, second):
        folder.mkdir()
    release(second, numbered(2, TELLS))
    point(current, first)
    release(first, numbered(1, TELLS))
    definitions = f"""
with open("{current}/release.py") as file:
    exec(file.read())
class Handler(Who):
    def do_release(self):
        return RELEASE
"""
    (tmp_path / "relative.py").write_text(script(definitions, max_children=1, working_directory=str(current)))
    with Released(tmp_path, argv=["relative.py"]) as service:
        service.wait_ready(1)
        assert service.wait("worker")["here"] == str(first)
        after = service.mark()
        point(current, second)
        service.signal(1)
        service.wait_reloads(ok=1)
        assert service.wait("worker", lambda fact: fact["here"] == str(second), after=after)
        service.wait_ready(1, replaced=1)
        assert service.answering() == "r2"


def test_a_class_that_names_none(tmp_path: Path) -> None:
    """A directory that is not there is said in one sentence, and nothing is forked."""
    source = script(max_children=1, working_directory="/nowhere")
    with Released(tmp_path, source=source) as service:
        service.expect("ConfigError: could not change to the directory /nowhere")
        assert service.wait_exit() == 1
        assert "could not change to the directory /nowhere (from working_directory)" in service.log
        assert not [fact for fact in service.facts if fact["event"] == "worker_started"]
