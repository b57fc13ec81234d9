"""Training that is killed and resumed, in processes of its own, against training that never stopped."""

import dataclasses
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


WORKER = Path(__file__).with_name("resume_worker.py")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a process has printed, and how it ended."""

    start: int
    losses: dict[int, str]
    digest: str | None
    returncode: int
    errors: str


def train(how: str, folder: Path, fatal: int = 0, kill_after: int = 0) -> Outcome:
    """Run the worker. It dies in the save of step `fatal`, or is killed some time after `kill_after`."""
    saved = folder / "saved"
    saved.mkdir(exist_ok=True)
    last = kill_after + 6 if kill_after else 0  # it must not be through before it is killed
    command = [sys.executable, str(WORKER), how, str(saved), str(fatal), str(last)]
    start, losses, digest = -1, {}, None
    errors = folder / "errors.txt"
    with (
        errors.open("w") as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as worker,
    ):
        try:
            for word, *rest in lines(worker):
                if word == "START":
                    start = int(rest[0])
                elif word == "STEP":
                    losses[int(rest[0])] = rest[1]
                    if int(rest[0]) == kill_after:
                        worker.kill()
                elif word == "DIGEST":
                    (digest,) = rest
        finally:
            worker.kill()
    return Outcome(start, losses, digest, worker.returncode, errors.read_text()[-2000:])


def lines(worker: subprocess.Popen[str]) -> Iterator[list[str]]:
    """The complete lines of a process as words, until it ends."""
    assert worker.stdout is not None
    for line in worker.stdout:
        if line.endswith("\n"):
            yield line.split()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Training that is never stopped, and never saved."""
    outcome = train("nothing", tmp_path_factory.mktemp("whole"))
    assert outcome.digest is not None, outcome.errors
    return outcome


@pytest.mark.once
@pytest.mark.parametrize("how", ["orbax", "equinox"])
def test_killed_training_goes_on_bit_for_bit(how: str, tmp_path: Path, whole: Outcome):
    """Killed from outside, and once more within a save, training ends as if nothing had happened.

    All losses and all arrays are the same bits: parameters, their average, the optimiser's state,
    statistics, random streams, the order of the data.
    """
    first = train(how, tmp_path, kill_after=6)
    assert first.returncode == -signal.SIGKILL, first.errors
    assert first.start == 0
    assert first.digest is None

    second = train(how, tmp_path, fatal=18)
    assert second.returncode == -signal.SIGKILL, second.errors
    assert 0 < second.start < 18
    assert max(second.losses) == 17

    third = train(how, tmp_path)
    assert third.returncode == 0, third.errors
    assert second.start < third.start <= 18
    assert third.digest == whole.digest
    assert first.losses | second.losses | third.losses == whole.losses
    for outcome in (first, second, third):
        assert outcome.losses.items() <= whole.losses.items()
