import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from crjax.execution import Job, Pool


@pytest.fixture(scope='module')
def pool():
  with Pool(2, cpu_seconds=0.5, memory_mb=256) as pool:
    yield pool


def one(pool, body, args='3', **kwargs):
  code = 'def f(x):\n' + '\n'.join(f'  {line}' for line in body.split('\n'))
  return pool.run([Job(code, 'f', args, **kwargs)])[0]


def test_values_come_back_as_repr_in_order(pool):
  jobs = [Job('def f(x):\n  return x * 2', 'f', repr(i)) for i in range(50)]
  assert [r.value for r in pool.run(jobs)] == [str(2 * i) for i in range(50)]


@pytest.mark.parametrize(
  ('body', 'verdict', 'detail'),
  [
    ('while True: pass', 'timeout', 'CPU'),
    ('import time; time.sleep(60)', 'timeout', 'wall'),
    ("return 'a' * 10**9", 'memory', 'memory limit'),
    ('return [0] * 10**10', 'memory', 'memory limit'),
    ('return f(x)', 'error', 'RecursionError'),
    ('return 1 / 0', 'error', 'ZeroDivisionError'),
    ('import os; os._exit(0)', 'error', 'without a value'),
    ('raise SystemExit', 'error', 'SystemExit'),
    ("return 'a' * 5000", 'error', '4 KB'),
    ('import os; os.abort()', 'error', 'signal 6'),
    ("import os; os.write(os.memfd_create('x'), b'x')", 'error', 'OSError'),
  ],
)
def test_a_bad_program_is_its_own_problem(pool, body, verdict, detail):
  result = one(pool, body)
  assert (result.verdict, result.value) == (verdict, '')
  assert detail in result.detail
  assert one(pool, 'return x + 1').value == '4'


def test_what_a_program_prints_goes_nowhere(pool):
  result = one(pool, "print('x' * 10**6)\nimport os\nos.write(1, b'{}')")
  assert (result.verdict, result.value) == ('ok', 'None')


def test_programs_that_do_not_compile_or_lack_the_entry(pool):
  broken = pool.run([Job('def f(x', 'f', '1'), Job('g = 1', 'f', '1')])
  assert [r.verdict for r in broken] == ['error', 'error']
  assert 'SyntaxError' in broken[0].detail
  assert "no function 'f'" in broken[1].detail


def test_nothing_of_one_job_reaches_the_next(pool):
  one(pool, 'import builtins; builtins.len = lambda _: 7')
  for _ in range(4):
    assert one(pool, 'return len(x)', "'ab'").value == '2'


def test_hashes_and_so_set_orders_are_fixed(pool):
  values = {
    one(pool, "return list({'a', 'b', 'c', 'd'})").value for _ in range(6)
  }
  assert len(values) == 1


def test_a_program_that_kills_its_worker_is_infra_and_the_pool_lives(pool):
  body = 'import os, signal\nos.kill(os.getppid(), signal.SIGKILL)'
  assert one(pool, body).verdict == 'infra'
  assert one(pool, 'return x').value == '3'


def test_a_worker_killed_from_outside_is_replaced_unseen():
  with Pool(1) as pool:
    assert one(pool, 'return x').value == '3'
    process = pool._idle.get()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    pool._idle.put(process)
    assert one(pool, 'return x').value == '3'


def test_what_a_program_leaves_running_is_killed(pool):
  body = (
    'import os\nif os.fork() == 0:\n  import time\n  time.sleep(47)\n'
    'return os.getpid()'
  )
  result = one(pool, body)
  assert result.verdict == 'ok'
  group = subprocess.run(
    ['ps', '-o', 'stat=', '-g', result.value], capture_output=True, text=True
  ).stdout
  assert all(line.startswith('Z') for line in group.split())


@pytest.mark.parametrize(
  'reply',
  [
    '{"verdict": "infra"}',
    '{"verdict": "ok", "value": "1", "more": 1}',
    '{"verdict": "ok", "steps": [1]}',
    '[' * 5000,
    '[]',
  ],
)
def test_a_forged_reply_raises_nothing_and_reaches_no_other_job(reply):
  body = f"""import os
for fd in range(3, 64):
  try: os.write(fd, {reply!r}.encode() + b'\\n')
  except OSError: pass
os._exit(0)"""
  with Pool(1) as pool:
    assert one(pool, body).verdict in ('ok', 'error')
    assert one(pool, 'return x').value == '3'


@pytest.mark.parametrize(
  ('before', 'verdict'),
  [
    ('os.setpgid(0, os.getppid())', 'timeout'),
    ('os.kill(os.getppid(), 9)', 'infra'),
    ('if os.fork(): os._exit(0)\nos.setsid()', 'timeout'),
  ],
)
@pytest.mark.skipif(sys.platform != 'linux', reason='prctl is of Linux')
def test_a_program_that_leaves_its_group_dies_all_the_same(
  tmp_path, before, verdict
):
  told = tmp_path / 'pid'
  os.mkfifo(told)  # No file can grow, but a pipe can be written.
  reader = os.open(told, os.O_RDONLY | os.O_NONBLOCK)
  body = f"""import os, time
{before}
with open({str(told)!r}, 'w') as f: f.write(str(os.getpid()) + ' ')
time.sleep(600)"""
  with Pool(1, cpu_seconds=0.2) as pool:
    assert one(pool, body).verdict == verdict
    assert one(pool, 'return x').value == '3'
  for pid in os.read(reader, 1000).split():
    assert gone(int(pid))
  os.close(reader)


def gone(pid, patience=5.0):
  """Whether the process ends; a killed one may need a moment."""
  deadline = time.monotonic() + patience
  while time.monotonic() < deadline:
    stat = subprocess.run(
      ['ps', '-o', 'stat=', '-p', str(pid)], capture_output=True, text=True
    ).stdout
    if not stat or stat.startswith('Z'):
      return True
    time.sleep(0.05)
  return False


def test_a_program_can_create_no_file_where_it_runs(pool):
  assert one(pool, "open('made', 'w')").detail.startswith('FileNotFoundError')


def test_a_worker_that_cannot_start_says_so(monkeypatch):
  monkeypatch.setattr('crjax.execution.pool.WORKER', '/absent.py')
  with pytest.raises(OSError, match=r'no worker starts.*/absent\.py'):
    Pool(1)


def test_no_process_is_left_after_close():
  with Pool(2) as pool:
    processes = [pool._idle.get() for _ in range(2)]
    for process in processes:
      pool._idle.put(process)
  assert all(process.poll() is not None for process in processes)


def test_two_threads_use_two_pools():
  def work(n, out):
    with Pool(1) as pool:
      out[n] = [one(pool, 'return x', repr(i + n)).value for i in range(20)]

  out = {}
  threads = [threading.Thread(target=work, args=(n, out)) for n in (0, 100)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert out == {n: [str(i + n) for i in range(20)] for n in (0, 100)}


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
