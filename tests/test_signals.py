"""Ctrl-C, a closed terminal, a closed pipe: one line, and what is done is kept."""

import errno
import io
import os
import signal
import subprocess
import sys
import time

import pytest

from data_builders import build
from data_builders.simulated import Unlabelled
from emjax import cli
from emjax.errors import InputError, Interrupted
from emjax.experiments import plan, runner
from emjax.files import LONGEST_NAME, check_writable, draft_name, write_atomically
from emjax.parallel import processes

NAMES = [each.name for each in cli.STOPS]
COMMAND = """
import os, sys, time
from emjax import cli
def main():
    try:
        print("up", flush=True)
        {body}
    finally:
        print("cleaned", flush=True)
        {cleanup}
cli.run(main)
"""


def started(body, cleanup="pass", **options):
    """Return a running command with this `body`, after its first line."""
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND.format(body=body, cleanup=cleanup)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
    assert process.stdout.readline() == "up\n"
    return process


@pytest.fixture
def handlers():
    """The handlers of this process, put back after the test."""
    former = {each: signal.getsignal(each) for each in cli.STOPS}
    yield former
    for each, handler in former.items():
        signal.signal(each, handler)


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_harm_no_command(closed):
    """As those of a daemon; a file that is opened first would take their numbers otherwise."""
    program = "from emjax import cli; cli.run(lambda: print('up'))"
    line = f"exec '{sys.executable}' -c \"{program}\" {closed}"
    assert subprocess.run(["sh", "-c", line], timeout=60).returncode == 0


@pytest.mark.parametrize("number", cli.NO_ROOM)
def test_a_full_disk_names_the_file(number):
    code, line = cli.exit_code_and_line(OSError(number, "full", "a.tif"))
    assert (code, line) == (3, "a.tif: full; make room and run it again")


@pytest.mark.parametrize("name", NAMES)
def test_a_signal_ends_a_command_in_one_line_after_it_has_cleaned_up(name):
    process = started("time.sleep(60)")
    process.send_signal(signal.Signals[name])
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.Signals[name]
    assert out == "cleaned\n"
    assert err == f"error: stopped by {name}; only what was finished is kept\n"


def test_a_library_may_turn_the_signal_into_an_error_of_its_own(capsys, handlers):
    def main():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise RuntimeError("the callback failed") from None

    with pytest.raises(SystemExit) as end:
        cli.run(main)
    assert end.value.code == 130
    assert capsys.readouterr().err.startswith("error: stopped by SIGINT; ")


def test_a_second_signal_ends_a_command_at_once():
    process = started("time.sleep(60)", cleanup="time.sleep(60)")
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "cleaned\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (-signal.SIGINT, "", "")


def test_nohup_is_respected():
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the process inherits it
    try:
        process = started("print(sys.stdin.readline(), end='')", stdin=subprocess.PIPE)
    finally:
        signal.signal(signal.SIGHUP, former)
    process.send_signal(signal.SIGHUP)
    out, err = process.communicate("go\n", timeout=60)
    assert (process.returncode, out, err) == (0, "go\ncleaned\n", "")


@pytest.mark.parametrize("flush", [True, False])
@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_closed_pipe_ends_a_command_quietly(flush, lines):
    body = f"time.sleep(0.3); [print('line', flush={flush}) for _ in range({lines})]"
    with started(body) as process:
        process.stdout.close()
        err = process.stderr.read()
    assert (process.returncode, err) == (141, "")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: (folder / "file" / "x").mkdir(), "file/x: Not a directory; a file is wher"),
        (lambda folder: (folder / "no" / "x").mkdir(), "no/x: No such file or directory; check"),
        (lambda folder: (folder / ("n" * 300)).touch(), "n: File name too long; choose a shorter"),
        (lambda folder: check_writable(folder / "file" / "x"), "file: Not a directory; a file is"),
    ],
)
def test_what_the_system_refuses_is_one_line(tmp_path, capsys, handlers, make, said):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as end:
        cli.run(make, tmp_path)
    err = capsys.readouterr().err
    assert end.value.code == 3 and err.startswith("error: ") and said in err
    assert err.count("\n") == 1


def test_an_error_of_the_program_keeps_its_traceback(handlers):
    with pytest.raises(OSError, match="cannot identify"):
        cli.run(lambda: (_ for _ in ()).throw(OSError("cannot identify the image")))


@pytest.mark.parametrize("arguments", [
    ["emjax.predict", "--model=m", "--out={}/file/x", "x.tif"],
    ["emjax.report", "--runs=.", "--out={}/file/x"],
    ["emjax.convert", "--from=x", "--to={}/file/x"],
    ["emjax.sweep", "--config=paper", "--runs={}/file/x"],
    ["data_builders.build", "simulated/unlabelled", "--data_dir={}/file/x"],
    ["data_builders.export", "simulated/unlabelled", "--data_dir=x", "--split=val",
     "--out={}/file/x"],
    ["emjax.main", "--config=pretrain:smoke", "--workdir={}/file/x"],
], ids=lambda arguments: arguments[0])  # fmt: skip
def test_a_folder_that_cannot_be_written_is_refused_by_every_command(tmp_path, arguments):
    (tmp_path / "file").touch()
    module, *others = arguments
    main = __import__(module, fromlist=["main"]).main
    with pytest.raises((OSError, InputError)) as caught:
        main([each.format(tmp_path) for each in others])
    code, line = cli.exit_code_and_line(caught.value)
    assert code == 3 and "Not a directory" in line and str(tmp_path / "file") in line


def asked(stop):
    """Return `stop()` once it is true, or after a second."""
    end = time.monotonic() + 1
    while not stop() and time.monotonic() < end:
        time.sleep(0.001)
    return stop()


@pytest.mark.parametrize("name", NAMES)
def test_training_is_asked_to_stop_by_every_signal(name, handlers):
    with processes.stop_asked(lambda: False) as stop:
        assert not stop()
        os.kill(os.getpid(), signal.Signals[name])
        assert asked(stop)
    assert {each: signal.getsignal(each) for each in cli.STOPS} == handlers


def test_training_is_asked_to_stop_by_a_closed_output_and_not_by_an_ignored_signal(handlers):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    closed = []
    with processes.stop_asked(lambda: bool(closed)) as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not asked(stop)
        closed.append(1)
        assert stop()


def test_a_second_signal_ends_training_also_in_a_long_computation():
    program = """
import hashlib, signal
from emjax import cli
from emjax.parallel import processes
with processes.signals_received(*cli.STOPS) as stop:
    print("up", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # in C, without Python's lock
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)  # fmt: skip
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)  # as `timeout` does: no second one
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.send_signal(signal.SIGHUP)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 129
    assert err == "error: stopped by a second SIGHUP, nothing saved\n"


class Closed(io.StringIO):
    """A stream that fails like a pipe without a reader, or a terminal that is gone."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def write(self, text):
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("number, raised", [(errno.EPIPE, BrokenPipeError),
                                            (errno.EIO, Interrupted)])  # fmt: skip
def test_a_closed_output_does_not_keep_a_run_from_saving(number, raised, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Closed(number))
    saved = []
    with pytest.raises(raised):
        with cli.lasting_output() as closed:
            assert not closed()
            print("step 1", flush=True)
            assert closed()
            print("step 2", flush=True)
            saved.append(2)
            raise Interrupted("stopped at step 2")
    assert saved == [2]


def test_no_run_stays_behind_a_sweep_that_cannot_print(tmp_path, monkeypatch):
    begun = []

    def recorded(*arguments, **options):
        begun.append(subprocess.Popen(*arguments, **options))
        return begun[-1]

    def closed(*words, **options):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    line = [sys.executable, "-c", "import time; time.sleep(60)"]
    monkeypatch.setattr(runner, "command", lambda job, config, root: line)
    monkeypatch.setattr(runner, "subprocess", type("S", (), {"Popen": recorded, "DEVNULL": -3}))
    monkeypatch.setattr(runner, "print", closed, raising=False)
    jobs = [plan.Job("a", None, "", 1, 0, False, "a")]
    device = {"platform": "cpu", "count": 1, "kind": "", "tflops": 1.0}
    with pytest.raises(BrokenPipeError):
        runner.run_jobs(jobs, "x.py", tmp_path, device)
    assert [process.returncode for process in begun] == [-signal.SIGTERM]


def test_a_stopped_build_leaves_nothing(tmp_path, monkeypatch):
    calls = []

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return drawn(*arguments, **options)

    drawn = Unlabelled.draw
    monkeypatch.setattr(Unlabelled, "draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build.main(["simulated/unlabelled", f"--data_dir={tmp_path / 'data'}", "--records=20",
                    "--patch=32"])  # fmt: skip
    assert len(calls) > 3 and not (tmp_path / "data").exists()


def test_a_stopped_write_leaves_no_half_file(tmp_path, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "a.png", b"x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["n" * 255, "ü" * 127, "a.tif"])
def test_a_draft_has_a_name_that_fits(tmp_path, name):
    assert len(os.fsencode(draft_name(name, ".partial"))) <= LONGEST_NAME
    write_atomically(tmp_path / name, b"x")
    assert [path.name for path in tmp_path.iterdir()] == [name]
