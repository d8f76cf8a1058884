"""Kernels that are compiled while their program is still being traced."""

from multiprocessing.pool import ThreadPool

import pytest
from strategies import normal
from tinygrad.codegen import to_program_key
from tinygrad.engine import realize, worker
from tinygrad.uop.ops import KernelInfo, UOp

from tinygmf.engine.ahead import Workers
from tinygmf.engine.program_cache import compile_program
from tinygmf.loops import calls, inference
from tinygmf.loops.values import hardswish
from tinygmf.tensors import tensor_from_numpy


def test_a_kernel_that_was_begun_is_not_compiled_again(monkeypatch):
    compiled = []

    def compile_kernel(task):
        number, (kernel, _), _ = task
        compiled.append(kernel)
        return number, kernel

    monkeypatch.setattr(realize, "_compile_kernel", compile_kernel)
    first, second = (UOp.sink(arg=KernelInfo(name=f"never_run_{i}")) for i in range(2))
    with ThreadPool(1) as pool:
        workers = Workers(pool)
        workers.begin(first)
        workers.begin(first)
        tasks = [(i, (kernel, workers.renderer), {}) for i, kernel in enumerate((second, first))]
        found = dict(workers.imap_unordered(compile_kernel, tasks))
    assert found == {0: second, 1: first}
    assert sorted(compiled, key=lambda kernel: kernel.arg.name) == [first, second]
    assert not workers.begun


def two_nests(x):
    return inference.apply(hardswish, inference.pad(x, 1))


def test_every_loop_nest_of_a_program_is_begun_before_it_is_asked_for(monkeypatch):
    begun, asked = set(), set()
    begin, imap = Workers.begin, Workers.imap_unordered

    def spy_begin(self, kernel):
        begun.add(to_program_key(kernel, self.renderer))
        begin(self, kernel)

    def spy_imap(self, function, tasks):
        tasks = list(tasks)
        asked.update(to_program_key(*task[1]) for task in tasks)
        return imap(self, function, tasks)

    monkeypatch.setattr(Workers, "begin", spy_begin)
    monkeypatch.setattr(Workers, "imap_unordered", spy_imap)
    x = normal(0, 1, 11, 13, 17)  # a size that no other test has compiled
    program = compile_program(two_nests, tensor_from_numpy(x, "CPU"), progress=False)
    assert program(tensor_from_numpy(x, "CPU")).shape == (1, 13, 15, 17)
    assert len(asked) == 2 and asked <= begun


def test_a_trace_that_fails_leaves_no_workers_and_no_listener():
    own = realize.get_worker_pool

    def fails(x):
        inference.pad(x, 2)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        compile_program(fails, tensor_from_numpy(normal(0, 1, 9, 15, 19), "CPU"), progress=False)
    assert realize.get_worker_pool is own
    assert worker.worker_pool is None and not calls.listeners
