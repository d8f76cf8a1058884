"""What is left when a process dies, or the machine runs out of something, at any moment.

    python tests/tools/kill_at_random.py --kills 200 --training 60

A child process writes (an entry of the cache of compiled programs, or a converted weight file) or
trains, and is killed with SIGKILL at a random moment, half of the time during a write. Then nothing
half-written may bear a final name, an older file must be whole, and the next run must work; one
that trains must end with the very weights of a run that nobody disturbed. The other faults are a
full disk, a folder that cannot be written, four processes on one cache, too little memory, and
Ctrl-C during a compile: each must end with one line that says what happened.

Needs `fork`: Linux or macOS.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from process import environment
from tinygrad import Tensor

from tinygmf.commands.run_folder import holds_finished
from tinygmf.engine import program_cache, user_cache
from tinygmf.engine.devices import open_device
from tinygmf.tensors import tensor_from_numpy
from tinygmf.training import log
from tinygmf.training.run_file import Run, save_run
from tinygmf.weights import checkpoint
from tinygmf.weights.checkpoint import read_tensors, write_tensors

# Where the disk is full, Python keeps the half of a .pyc file that it could write, and fails on it
# ever after. Here too it would: child processes are told by the variable, this one by the flag.
os.environ |= {"PYTHONDONTWRITEBYTECODE": "1", "DEV": os.environ.get("DEV", "CPU")}
sys.dont_write_bytecode = True
WEIGHTS = Path(__file__).parents[1] / "data" / "nano.pth"
KEY = {"network": "fault"}


def double(x: Tensor, weights: list[Tensor]) -> Tensor:
    return (x * weights[0] + 1).contiguous()


def must_not_run(*_: object) -> Tensor:
    raise AssertionError("compiled again")


def run_program(function: Callable = double) -> list[float]:
    x, weight = (tensor_from_numpy(np.full(7, 2, np.float32), "CPU") for _ in range(2))
    program = program_cache.load_or_compile(
        KEY, function, x, [weight], device="CPU", progress=False
    )
    return program(x, [weight]).tolist()


# Killing


def kill_during(work: Callable[[], None], delay: float, aimed: bool) -> bool:
    """Run `work` in a child and kill it after `delay` seconds, counted from its first write if
    `aimed`; whether it was still alive."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            if aimed:
                _signal_at_first_write(writer)
            else:
                os.write(writer, b"!")
            work()
        finally:
            os._exit(0)
    os.close(writer)
    os.read(reader, 1)  # nothing, if the child ended without a write
    os.close(reader)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def _signal_at_first_write(pipe: int) -> None:
    writers = (program_cache, "replacing_itself"), (checkpoint, "replacing"), (log, "replacing")
    for module, name in writers:
        whole = getattr(module, name)

        def told(*arguments, whole=whole, **options):
            os.write(pipe, b"!")
            return whole(*arguments, **options)

        setattr(module, name, told)


class CacheWriting:
    """An entry that is written again and again, with 3 MB beside the program to take some time."""

    def __init__(self, folder: Path) -> None:
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        self.answer = run_program()
        key = KEY | program_cache.environment("CPU")
        self.path = program_cache.entry_path(key)
        self.key, self.program = key, program_cache.load(self.path, key)
        self.program.ballast = os.urandom(3_000_000)

    def work(self) -> None:
        program_cache.save(self.path, self.key, self.program)

    def prepare(self, r: random.Random) -> None:
        if r.random() < 0.5:
            self.path.unlink(missing_ok=True)

    def check(self) -> None:
        if self.path.exists():  # whole, or it would be compiled again
            assert run_program(must_not_run) == self.answer
        assert run_program() == self.answer
        for left in self.path.parent.iterdir():
            assert left == self.path or left.name.endswith(".tmp"), left
        user_cache.clear()
        assert run_program() == self.answer


class Conversion:
    """`tinygmf convert`, to a new file or over an older one."""

    def __init__(self, folder: Path) -> None:
        self.output = folder / "converted.safetensors"
        run_once(self)
        self.whole = self.output.read_bytes()
        found, expected = read_tensors(self.output), read_tensors(WEIGHTS)
        assert all((found[name] == expected[name]).all() for name in expected)
        write_tensors({"old": np.zeros(9, np.float32)}, self.output)
        self.old = self.output.read_bytes()

    def work(self) -> None:
        from tinygmf.commands.main import main

        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        main(["convert", str(WEIGHTS), str(self.output)])

    def prepare(self, r: random.Random) -> None:
        for left in self.output.parent.glob(".*.tmp"):
            left.unlink()
        self.output.unlink(missing_ok=True)
        if r.random() < 0.5:
            self.output.write_bytes(self.old)

    def check(self) -> None:
        if self.output.exists():
            assert self.output.read_bytes() in (self.old, self.whole), "half a file"
        run_once(self)
        assert self.output.read_bytes() == self.whole


class Training:
    """`tinygmf train`, eight steps and as many checkpoints; a run that was killed is resumed, and
    when it has come to its end the next one begins.

    Nothing is computed in this process: a process that tinygrad has computed in cannot be forked.
    """

    steps = 8
    finished = -1  # runs that came to their end, without the first, which nobody disturbs

    def __init__(self, folder: Path) -> None:
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        self.folder, self.out, data = folder, folder / "run", folder / "data"
        pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 32, 32, 3), dtype=np.uint8)
        for name, pictures in zip(("cat", "dog"), pixels, strict=True):
            (data / name).mkdir(parents=True)
            for i, picture in enumerate(pictures):
                Image.fromarray(picture).save(data / name / f"{i}.png")
        run_once(self)  # compiles
        self.expected = self._weights()
        self.full_disk()

    def work(self) -> int:
        from tinygmf.commands.main import main

        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        options = f"--out {self.out} --epochs {self.steps} --batch-size 8 --size 32 --device CPU"
        resume = ["--resume"] * (self.out / "run.safetensors").exists()
        return main(["train", str(self.folder / "data"), *options.split(), *resume])

    def prepare(self, r: random.Random) -> None:
        if holds_finished(self.out):
            assert self._weights() == self.expected, "other weights than the undisturbed run's"
            self.finished += 1
            shutil.rmtree(self.out)

    def check(self) -> None:
        for path in self.out.iterdir() if self.out.exists() else ():
            if path.suffix == ".safetensors":
                assert all(np.isfinite(array).all() for array in read_tensors(path).values())
            elif path.suffix == ".jsonl":
                assert all(json.loads(line) for line in path.read_text().splitlines())

    def full_disk(self) -> None:
        """A run that cannot save says so in a line, and resumes where it saved last."""
        import resource

        def work() -> int:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
            return self.work()

        shutil.rmtree(self.out)
        code, said = in_child(work)
        assert code == 2 and "cannot be written: " in said.splitlines()[-1], (code, said)
        assert not list(self.out.glob("*.safetensors")) + list(self.out.glob(".*.tmp"))

    def _weights(self) -> dict[str, bytes]:
        tensors = read_tensors(self.out / "model.safetensors")
        return {name: array.tobytes() for name, array in tensors.items()}


def kill_at_random(scenario: type[Scenario], kills: int, seed: int = 0) -> tuple[int, int, int]:
    """Kill the scenario so many times; how often it was, how often during a write, and how many
    runs came to their end all the same."""
    r = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        case = scenario(Path(folder))
        start = time.perf_counter()
        run_once(case)
        whole = time.perf_counter() - start
        done = aimed_kills = 0
        while done < kills:
            case.prepare(r)
            aimed = done % 2 == 0
            if kill_during(case.work, r.random() * (0.02 if aimed else whole), aimed):
                done, aimed_kills = done + 1, aimed_kills + aimed
            case.check()
        run_once(case)  # the next run works
        case.prepare(r)
    return done, aimed_kills, getattr(case, "finished", 0)


Scenario = CacheWriting | Conversion | Training


def run_once(case: Scenario) -> None:
    """One run that nobody kills, in a child as the others."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            code = int(case.work() or 0)
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0, f"{type(case).__name__}: the run failed"


# Running out


def in_child(work: Callable[[], object]) -> tuple[int, str]:
    """Run `work` in a child: its exit code, and what it wrote to standard error."""
    with tempfile.TemporaryFile() as said:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.dup2(said.fileno(), 2)
                code = int(work() or 0)
            except BaseException as error:
                traceback.print_exception(error)
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said.seek(0)
        return code, said.read().decode()


def convert(output: Path) -> int:
    from tinygmf.commands.main import main

    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return main(["convert", str(WEIGHTS), str(output)])


def full_disk(folder: Path) -> None:
    """No file may grow beyond 100 KB: the write fails as on a full disk, and the old file stays."""
    import resource

    output = folder / "full.safetensors"
    write_tensors({"old": np.zeros(9, np.float32)}, output)
    old = output.read_bytes()

    def work() -> int:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        return convert(output)

    code, said = in_child(work)
    assert code == 2 and "cannot be written: " in said and len(said.splitlines()) == 1, said
    assert output.read_bytes() == old and list(folder.glob(".*.tmp")) == []


def full_disk_of_a_run(folder: Path) -> None:
    """A checkpoint that cannot be written leaves the one before it, as does a closed folder."""
    import resource

    path = folder / "run.safetensors"

    def run(size: int) -> Run:
        return Run({"weights": np.ones(size, np.float32)}, {})

    def work(size: int, limit: int) -> int:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            save_run(path, run(size))
        except checkpoint.CheckpointError as error:
            print(error, file=sys.stderr)
            return 2
        return 0

    assert in_child(lambda: work(1000, 100_000)) == (0, "")
    old = path.read_bytes()
    code, said = in_child(lambda: work(100_000, 100_000))
    assert code == 2 and "cannot be written: " in said and len(said.splitlines()) == 1, said
    assert path.read_bytes() == old and list(folder.iterdir()) == [path]


def full_disk_of_the_cache(folder: Path) -> None:
    """The program runs all the same, and a warning says that it was not kept."""
    import resource

    os.environ["XDG_CACHE_HOME"] = str(folder / "cache-full")
    program_cache.programs_directory()

    def work() -> int:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        warnings.simplefilter("always")
        return run_program() != [5.0] * 7

    code, said = in_child(work)
    assert code == 0 and "was not kept" in said, said
    assert list(program_cache.programs_directory().iterdir()) == []


def readonly_folder(folder: Path) -> None:
    """As user nobody, in another user's folder."""
    closed = folder / "closed"
    closed.mkdir(mode=0o555)

    def work() -> int:
        convert(folder / "warm.safetensors")  # imports what nobody may not be able to read
        if os.geteuid() == 0:
            os.setuid(65534)
        return convert(closed / "out.safetensors")

    folder.chmod(0o755)
    code, said = in_child(work)
    assert code == 2 and "cannot be written: Permission denied" in said, said
    assert list(closed.iterdir()) == []


def four_processes(folder: Path) -> None:
    """All four compile and write the same entry, and it is whole."""
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache-four")
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = int(run_program() != [5.0] * 7)
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4
    assert run_program(must_not_run) == [5.0] * 7
    assert len(list(program_cache.programs_directory().iterdir())) == 1


def too_little_memory(folder: Path) -> None:
    """60 MB more than the process has, and a network of 80 MB, nearly all in its head."""
    import resource

    big, tensors = folder / "big.safetensors", read_tensors(WEIGHTS)
    width = tensors["head.weight"].shape[1]
    head = {"head.weight": np.zeros((20_000_000 // width, width), np.float32)}
    head["head.bias"] = np.zeros(len(head["head.weight"]), np.float32)
    write_tensors(tensors | head, big)

    def work() -> int:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + 60_000_000
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        from tinygmf.commands.main import main

        return main(["info", str(big)])

    code, said = in_child(work)
    assert code == 2 and "memory" in said and len(said.splitlines()) == 1, (code, said)


def interrupted_compile(folder: Path) -> None:
    """Ctrl-C while the network is compiled: one line, exit code 130, and the next run works."""
    cache = folder / "cache-interrupted"
    command = [sys.executable, "-m", "tinygmf", "verify"]
    with subprocess.Popen(
        command,
        env=environment(XDG_CACHE_HOME=str(cache)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # a shell's background jobs ignore Ctrl-C, and would pass that on
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        assert "compiling" in first, first
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    # Python ends itself with the signal if it came while code made from text ran, a dataclass's
    # say; to a shell both are 130.
    assert process.returncode in (130, -signal.SIGINT), (process.returncode, said)
    assert said.splitlines()[-1].endswith("tinygmf: interrupted") and "Traceback" not in said, said
    assert [p for p in cache.rglob("*") if p.suffix in (".program", ".tmp")] == []


FAULTS = (
    *(full_disk, full_disk_of_a_run, full_disk_of_the_cache, readonly_folder, four_processes),
    interrupted_compile,
    *((too_little_memory,) if Path("/proc/self/statm").exists() else ()),
)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--kills", type=int, default=200, help="of cache writing, and of conversion"
    )
    parser.add_argument(
        "--training", type=int, default=60, help="kills of a training run, 0 for none: it compiles"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    if args.training:
        tell(Training, args.training, args.seed)
    open_device("CPU")  # the children inherit it
    for fault in FAULTS:
        folder = Path(tempfile.mkdtemp())
        try:
            fault(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        print(f"{fault.__name__.replace('_', ' ')}: survived", flush=True)
    for scenario in (CacheWriting, Conversion):
        tell(scenario, args.kills, args.seed)
    return 0


def tell(scenario: type[Scenario], kills: int, seed: int) -> None:
    done, aimed, finished = kill_at_random(scenario, kills, seed)
    ends = f", {finished} runs resumed to the end" * (finished > 0)
    name = scenario.__name__
    print(f"{name}: killed {done} times, {aimed} of them during a write; nothing lost{ends}")


if __name__ == "__main__":
    sys.exit(main())
