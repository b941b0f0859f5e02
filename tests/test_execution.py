"""The pool: results, limits, lost workers, traces. Attacks: test_hostile."""

import collections
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from crjax import execution
from crjax.execution import (
  Case,
  Job,
  Pool,
  check,
  check_all,
  literals,
  screen,
)
from tests.conftest import ROOT


@pytest.fixture(scope='module')
def pool():
  with Pool(2, cpu_seconds=0.5) as pool:
    yield pool


def program(body):
  return 'def f(x):\n' + '\n'.join(f'  {line}' for line in body.split('\n'))


def one(pool, body, args='3', **kwargs):
  return pool.run([Job(program(body), 'f', args, **kwargs)])[0]


def test_values_come_back_as_repr_in_order(pool):
  jobs = [Job('def f(x):\n  return x * 2', 'f', repr(i)) for i in range(50)]
  assert [r.value for r in pool.run(jobs)] == [str(2 * i) for i in range(50)]


@pytest.mark.parametrize(
  ('body', 'verdict', 'detail'),
  [
    ('while True: pass', 'timeout', 'CPU limit'),
    ('import time; time.sleep(60)', 'timeout', 'wall-clock limit'),
    ("return 'a' * 10**9", 'memory', 'MemoryError in call'),
    ('return [0] * 10**10', 'memory', 'MemoryError in call'),
    ('return f(x)', 'exception', 'RecursionError in call'),
    ('return 1 / 0', 'exception', 'ZeroDivisionError in call: division by'),
    ('import os; os._exit(0)', 'crash', 'exit with status 0 and no value'),
    ('raise SystemExit', 'exception', 'SystemExit in call'),
    ("return 'a' * 70000", 'output_limit', 'the result'),
    ("while True: print('a' * 10000)", 'output_limit', 'what it prints'),
    ('import os; os.abort()', 'disallowed', 'a forbidden system call'),
    (
      "import os; os.memfd_create('x')",
      'disallowed',
      'a forbidden system call',
    ),
    ('return open(__file__)', 'exception', 'NameError in call'),
    ("return open('x')", 'disallowed', 'open x'),
    ('import numpy', 'disallowed', 'import numpy'),
    ('return f', 'unsupported', 'not data'),
    ('return', 'ok', ''),
    ("return eval('1 +')", 'exception', 'SyntaxError in call'),
    (
      "import dis\ncode = bytes([dis.opmap['LOAD_CONST'], 99] * 99)\n"
      'f.__code__ = f.__code__.replace(co_code=code, co_consts=())\nf(x)',
      'crash',
      'SIGSEGV',
    ),
  ],
)
def test_a_bad_program_is_its_own_problem(pool, body, verdict, detail):
  result = one(pool, body)
  assert result.verdict == verdict
  assert detail in result.detail
  assert one(pool, 'return x + 1').value == '4'


def test_what_a_program_prints_goes_nowhere(pool, capfd):
  body = "import sys\nprint('x' * 10**6)\nprint('y', file=sys.stderr)"
  assert one(pool, body).value == 'None'
  assert capfd.readouterr() == ('', '')


def test_programs_that_do_not_compile_or_lack_the_entry(pool):
  broken = pool.run([Job('def f(x', 'f', '1'), Job('g = 1', 'f', '1')])
  assert [r.verdict for r in broken] == ['syntax', 'exception']
  assert 'SyntaxError in compile' in broken[0].detail
  assert "no function 'f'" in broken[1].detail


@pytest.mark.parametrize(
  ('code', 'args', 'phase'),
  [
    ('def f(x', '1', 'compile'),
    ('1 / 0\ndef f(x): pass', '1', 'define'),
    ('def f(x): pass', 'y', 'args'),
    ('def f(x): pass', '1, 2', 'call'),
  ],
)
def test_an_exception_names_its_phase(pool, code, args, phase):
  assert f' in {phase}' in pool.run([Job(code, 'f', args)])[0].detail


def test_nothing_of_one_job_reaches_the_next(pool):
  one(pool, 'import builtins; builtins.len = lambda _: 7')
  for _ in range(4):
    assert one(pool, 'return len(x)', "'ab'").value == '2'


def test_hashes_random_and_time_zone_are_fixed(pool):
  body = (
    'import random, time\n'
    "return list({'a', 'b', 'c', 'd'}), random.random(), time.tzname[0]"
  )
  values = {one(pool, f'{body}  # {i}').value for i in range(6)}
  assert len(values) == 1
  assert "'UTC'" in values.pop()


def test_another_hash_seed_shows_what_depends_on_it(pool):
  jobs = [
    Job(program("return list({'a', 'b', 'c', 'd', 'e', x})"), 'f', "'z'"),
    Job(program("return sorted({'a', 'b', 'c', 'd', 'e', x})"), 'f', "'z'"),
  ]
  with Pool(1, hash_seed=1) as other:
    pairs = list(zip(pool.run(jobs), other.run(jobs), strict=True))
  assert [a.py == b.py for a, b in pairs] == [False, True]


def test_a_worker_killed_from_outside_is_replaced_unseen():
  with Pool(1) as pool:
    for how in (signal.SIGKILL, signal.SIGTERM):
      assert one(pool, 'return x').value == '3'
      pool._links[0].process.send_signal(how)
      pool._links[0].process.wait()
    assert one(pool, 'return x', '4').value == '4'


@pytest.mark.skipif(sys.platform != 'linux', reason='the kernel of Linux')
def test_where_memory_runs_out_a_worker_goes_before_the_trainer(pool):
  path = '/proc/{}/oom_score_adj'
  score = lambda pid: int(pathlib.Path(path.format(pid)).read_text())
  assert {score(link.process.pid) for link in pool._links} == {1000}
  assert score('self') < 1000


def test_a_worker_killed_in_mid_frame_costs_no_verdict():
  """Its jobs run again; the order stays; what it held first is tried twice."""
  jobs = [
    Job(program(f'for _ in range(10**6): pass\nreturn {i}'), 'f', '1')
    for i in range(12)
  ]
  with Pool(2) as pool:
    timer = threading.Timer(0.1, lambda: pool._links[0].process.kill())
    timer.start()
    results = pool.run(jobs)
    timer.join()
  assert [r.value for r in results] == [str(i) for i in range(12)]


def test_a_job_that_loses_its_worker_twice_is_infra_and_alarms():
  """Only from outside: no program can."""
  with Pool(1, cpu_seconds=5) as pool:
    stop = threading.Event()

    def shoot():
      while not stop.wait(0.05):
        pool._links[0].process.kill()

    shooter = threading.Thread(target=shoot)
    shooter.start()
    spin = Job(program('for _ in range(10**9): pass'), 'f', '1')
    results = pool.run([spin, spin])
    stop.set()
    shooter.join()
    assert [r.verdict for r in results] == ['infra', 'infra']
    assert one(pool, 'return x').value == '3'
    with pytest.warns(RuntimeWarning, match='failed through no fault'):
      pool.run([Job(program('return x'), 'f', '1')] * 98)


def test_a_stopped_worker_is_noticed(monkeypatch):
  monkeypatch.setattr('crjax.execution.dispatch.SLACK_SECONDS', 0.3)
  with Pool(1, cpu_seconds=0.1) as pool:
    assert one(pool, 'return x').value == '3'
    children = subprocess.run(
      ['pgrep', '-s', str(pool._links[0].process.pid)],
      capture_output=True,
      text=True,
    ).stdout.split()
    for pid in children:
      os.kill(int(pid), signal.SIGSTOP)
    assert one(pool, 'return x', '5').value == '5'


def test_calls_in_company_and_alone_have_one_verdict(pool):
  body = (
    'if x == 3: raise ValueError(x)\nif x == 5:\n  while True: pass\n'
    'if x == 7: return f\nif x == 9: return [0] * 10**10\n'
    'if x == 11: return str(x) * 10**6\nreturn x, [x] * x'
  )
  jobs = [Job(program(body), 'f', str(x)) for x in range(32)]
  with Pool(2, cpu_seconds=0.5, share=1) as lonely:
    alone = lonely.run(jobs)
  plain = [r._replace(cpu_s=0) for r in pool.run(jobs)]
  assert plain == [r._replace(cpu_s=0) for r in alone]
  assert collections.Counter(r.verdict for r in plain) == {
    'ok': 27,
    'exception': 1,
    'timeout': 1,
    'unsupported': 1,
    'memory': 1,
    'output_limit': 1,
  }


def test_calls_that_change_what_they_share_do_not_share(pool):
  code = """import collections, decimal
Seen = []
def f(x, known=[]):
  known.append(x)
  Seen.append(x)
  decimal.getcontext().prec += 1
  collections.seen = getattr(collections, 'seen', 0) + 1
  return len(known), len(Seen), decimal.getcontext().prec, collections.seen"""
  assert not screen.unsafe(code)
  jobs = [Job(code, 'f', str(x)) for x in range(20)]
  assert len({r.value for r in pool.run(jobs)}) == 1


@pytest.mark.parametrize(
  ('code', 'reason'),
  [
    ('import math\ndef f(x): return math.pi', ''),
    ('import os\ndef f(x): return 1', 'imports os'),
    ('from random import random', 'imports random'),
    ('def f(x): return eval(x)', 'uses eval'),
    ('def f(x): return x.__class__', 'uses .__class__'),
    ('def f(x', 'SyntaxError'),
    ('class A:\n  def __init__(self): self.x = 1', ''),
  ],
)
def test_screened_programs(code, reason):
  assert screen.unsafe(code) == reason


def test_equal_jobs_run_once(pool):
  jobs = [Job(program('return x'), 'f', '1')] * 5
  before = pool.counts.total()
  assert len({id(r) for r in pool.run(jobs)}) == 1
  assert pool.counts.total() == before + 5


def test_one_value_in_a_hundred_is_run_alone_and_a_difference_alarms(pool):
  code = """from fractions import Fraction
kind = Fraction
def f(x):
  kind.calls = getattr(kind, 'calls', 0) + 1
  return kind.calls"""
  assert not screen.unsafe(code)  # Sharing is wrong here, and nobody sees it.
  jobs = [Job(code, 'f', str(x)) for x in range(200)]
  with pytest.warns(RuntimeWarning, match='in company than alone'):
    pool.run(jobs)


def test_an_interrupted_run_leaves_nothing_to_the_next():
  jobs = [Job(program(f'return {i}'), 'f', str(i)) for i in range(64)]

  def interrupt(done, total):
    raise KeyboardInterrupt

  with Pool(2) as pool:
    with pytest.raises(KeyboardInterrupt):
      pool.run(jobs, progress=interrupt)
    assert [r.value for r in pool.run(jobs[::-1])] == [
      str(i) for i in range(63, -1, -1)
    ]


def test_a_worker_that_cannot_start_says_why(monkeypatch, tmp_path):
  broken = tmp_path / 'worker.py'
  broken.write_text('import nothing_of_that_name')
  monkeypatch.setattr('crjax.execution.link.WORKER', broken)
  with pytest.raises(OSError, match='nothing_of_that_name'):
    Pool(1)


def test_progress_reaches_the_end(pool):
  told = []
  jobs = [Job(program('return x'), 'f', str(i)) for i in range(40)]
  pool.run(jobs, progress=lambda done, total: told.append((done, total)))
  assert told[-1] == (40, 40)


def test_the_cpu_limit_is_one_of_cpu_time():
  """Three workers on fewer cores: by the clock, each would be cut short."""
  body = 'n = 0\nfor i in range(3 * 10**6): n += 1\nreturn n'
  jobs = [Job(program(f'{body}  # {i}'), 'f', '1') for i in range(6)]
  with Pool(6, cpu_seconds=1.0) as pool:
    results = pool.run(jobs)
  assert {r.verdict for r in results} == {'ok'}


def test_a_pool_is_closed_with_its_workers():
  with Pool(2) as pool:
    processes = [link.process for link in pool._links]
    assert one(pool, 'return x').value == '3'
  assert all(process.poll() is not None for process in processes)


def test_two_threads_use_one_pool(pool):
  out = {}

  def work(n):
    out[n] = [one(pool, 'return x', repr(i + n)).value for i in range(20)]

  threads = [threading.Thread(target=work, args=(n,)) for n in (0, 100)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert out == {n: [str(i + n) for i in range(20)] for n in (0, 100)}


def test_a_pool_starts_beside_jax_without_a_fork_of_it():
  code = """import warnings; warnings.simplefilter('error')
import jax, threading; jax.numpy.ones(3).sum().block_until_ready()
from crjax.execution import Job, Pool
out = []
with Pool(1) as pool:
  job = Job('def f(x): return x', 'f', '1')
  thread = threading.Thread(target=lambda: out.extend(pool.run([job])))
  thread.start(); thread.join()
assert out[0].value == '1'"""
  subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True)


def test_killing_the_trainer_leaves_no_process(tmp_path):
  """SIGKILL in the middle of an endless loop; two seconds, as issued."""
  code = f"""from crjax.execution import Job, Pool
pool = Pool(2, cpu_seconds=60)
open({str(tmp_path / 'pids')!r}, 'w').write(
  ' '.join(str(link.process.pid) for link in pool._links))
pool.run([Job('def f(x):\\n  while x: pass', 'f', str(i)) for i in (1, 2)])"""
  trainer = subprocess.Popen([sys.executable, '-c', code], cwd=ROOT)
  while not (tmp_path / 'pids').exists() or not (
    sessions := (tmp_path / 'pids').read_text().split()
  ):
    assert trainer.poll() is None
    time.sleep(0.05)
  time.sleep(0.5)  # The loops are running.
  assert len(living(sessions)) >= 2
  trainer.kill()
  trainer.wait()
  until = time.monotonic() + 2
  while living(sessions) and time.monotonic() < until:
    time.sleep(0.05)
  assert not living(sessions)


def living(sessions):
  found = subprocess.run(
    ['ps', '-o', 'pid=', '-s', ','.join(sessions)],
    capture_output=True,
    text=True,
  )
  return found.stdout.split()


def test_workers_leak_no_process_descriptor_or_file(tmp_path, monkeypatch):
  monkeypatch.setenv('TMPDIR', str(tmp_path))
  with Pool(1) as pool:  # What Python opens once is open.
    one(pool, 'return x')
  before = sorted(os.listdir('/proc/self/fd'))
  for _ in range(3):
    with Pool(2, cpu_seconds=0.1) as pool:
      one(pool, 'while True: pass')
      pool._links[0].process.kill()
      assert one(pool, 'return x').value == '3'
  assert sorted(os.listdir('/proc/self/fd')) == before
  assert not list(tmp_path.iterdir())


def test_a_trace_tells_lines_and_what_they_changed(pool):
  body = 'y = 0\nfor i in range(x):\n  y += i\nreturn y'
  result = one(pool, body, '2', trace=True)
  assert result.value == '1'
  told = [(s.line, s.event, s.changed) for s in result.steps]
  assert told == [
    (1, 'call', {'x': '2'}),
    (2, 'line', {'y': '0'}),
    (3, 'line', {'i': '0'}),
    (4, 'line', {}),
    (3, 'line', {'i': '1'}),
    (4, 'line', {'y': '1'}),
    (3, 'line', {}),
    (5, 'return', {}),
  ]


def test_comprehensions_and_inner_calls_belong_to_their_line(pool):
  body = 'y = sorted([-i for i in x], key=lambda v: v)\nreturn y'
  result = one(pool, body, '[1, 2]', trace=True)
  assert [s.line for s in result.steps] == [1, 2, 3]
  assert result.steps[1].changed == {'y': '[-2, -1]'}


def test_a_comprehension_of_many_lines_is_one_step(pool):
  # On 3.12 and later an event per element; the same trace all the same.
  body = 'y = [\n  i + 1\n  for i in x\n  if i\n]\nreturn y'
  result = one(pool, body, '[0, 1]', trace=True)
  assert [(s.line, s.changed) for s in result.steps[1:]] == [
    (2, {'y': '[2]'}),
    (7, {}),
  ]


def test_an_endless_trace_is_a_timeout(pool):
  result = one(pool, 'while True:\n  x += 1', trace=True)
  assert result.verdict == 'timeout'


def test_an_exception_leaves_its_trace(pool):
  result = one(pool, 'y = x\nreturn y / 0', trace=True)
  assert result.verdict == 'exception'
  assert [s.line for s in result.steps][:2] == [1, 2]


ADD = 'def f(a, b=2):\n  return {"sum": a + b}'


@pytest.mark.parametrize(
  ('program', 'call', 'expected', 'kind'),
  [
    (ADD, 'f(1)', "{'sum': 3}", 'pass'),
    (ADD, 'f(1, b=4)', "{'sum': 5.0}", 'pass'),
    (ADD, 'f(1)', "{'sum': 4}", 'wrong'),
    (ADD, 'f(1 + 1)', "{'sum': 4}", 'bad_answer'),
    (ADD, 'g(1)', "{'sum': 3}", 'bad_answer'),
    (ADD, 'f(1)', "{'sum': 1 + 2}", 'bad_answer'),
    (ADD, "f('a')", "{'sum': 3}", 'exception'),
    ('def f(a: return', 'f(1)', '1', 'syntax'),
    (None, 'f(1)', '1', 'syntax'),
    (ADD, None, '1', 'bad_answer'),
    (ADD, 'f(1)', 1, 'bad_answer'),
    ('def f(x): return float("nan")', 'f(1)', 'nan', 'wrong'),
    ('def f(x): return f', 'f(1)', '1', 'unsupported'),
  ],
)
def test_one_case_has_one_verdict(pool, program, call, expected, kind):
  verdict = check(program, call, expected, pool=pool)
  assert verdict.kind == kind
  assert kind in execution.KINDS


def test_without_a_pool_a_process_has_its_own():
  assert check(ADD, 'f(1)', "{'sum': 3}").kind == 'pass'
  assert check(ADD, 'f(1)', "{'sum': 3}").cpu_s > 0
  code = 'from crjax.execution import check\nprint(check("def f(x): return x",'
  code += ' "f(1)", "1"))'
  subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True)


def test_strict_mode_counts_types(pool):
  cases = [Case(ADD, 'f(1)', e) for e in ("{'sum': 3}", "{'sum': 3.0}")]
  kinds = lambda mode: [v.kind for v in check_all(cases, mode=mode, pool=pool)]
  assert kinds('py') == ['pass', 'pass']
  assert kinds('strict') == ['pass', 'wrong']
  with pytest.raises(ValueError, match='mode'):
    check(ADD, 'f(1)', '1', mode='typed', pool=pool)


def test_two_phases_are_for_evaluation_only(pool):
  cases = [
    Case(
      'A = 5\ndef f(*g, k=0): return g + (k,)', 'f(A, *[1], k=A)', '(5,1,5)'
    ),
    Case('def f(g): return g(2)', 'f(lambda x: x)', '2'),
    Case('def f(x): return x', 'f(exit())', '2'),
  ]
  kinds = lambda **kw: [v.kind for v in check_all(cases, pool=pool, **kw)]
  assert kinds() == ['bad_answer'] * 3
  assert kinds(two_phase=True) == ['pass', 'bad_answer', 'bad_answer']


def test_cruxeval_outputs_reproduce_and_gold_passes(assets, pool):
  """Literal inputs as in training; the others, and only they, in two phases.

  Two inputs are lambdas, which are no data even then; that their outputs
  reproduce is seen by running the published call itself.
  """
  path = assets / 'data' / 'cruxeval_first400.jsonl'
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  cases = [Case(r['code'], f'f({r["input"]})', r['output']) for r in rows]
  assert len(cases) == 400
  kinds = collections.Counter(v.kind for v in check_all(cases, pool=pool))
  assert kinds == {'pass': 395, 'bad_answer': 5}
  for mode in execution.verdicts.MODES:
    both = check_all(cases, pool=pool, mode=mode, two_phase=True)
    failed = [c for c, v in zip(cases, both, strict=True) if v.kind != 'pass']
    assert len(failed) == 2
    assert all('lambda' in case.call for case in failed)
  for case in failed:
    (result,) = pool.run([Job(case.program, '', case.call)])
    assert literals.parse(result.value)[0] == [literals.parse(case.expected)]
