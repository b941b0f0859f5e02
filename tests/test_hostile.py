"""No attack passes, and after each one nothing outside has changed."""

import builtins
import contextlib
import os
import pathlib
import random
import secrets
import signal
import socket
import string
import subprocess
import sys

import pytest

from crjax.execution import KINDS, Case, Pool, check, check_all, isolation
from tests import hostile

CONTROL = Case('def f(x):\n  return sorted(x)', "f('ba')", "['a', 'b']")
# With every layer, and with seccomp alone, as in a container.
LAYERS = {
  'all': (),
  'seccomp': [x for x in isolation.LAYERS if x not in ('seccomp', 'rlimits')],
}


@pytest.fixture(scope='module', params=LAYERS)
def pool(request):
  without = LAYERS[request.param]
  with Pool(1, cpu_seconds=0.2, memory_mb=128, without=without) as pool:
    assert check(*CONTROL[:3], pool=pool).kind == 'pass'
    yield pool


@pytest.fixture(scope='module')
def outside(tmp_path_factory):
  """What attacks aim at: a port, a process, a file, a secret."""
  file = tmp_path_factory.mktemp('outside') / 'secret'
  file.write_text('untouched')
  os.environ['CRJAX_SECRET'] = 'untouched'
  victim = subprocess.Popen(['sleep', '600'])
  with socket.create_server(('127.0.0.1', 0)) as server:
    server.setblocking(False)
    yield {'file': file, 'victim': victim, 'server': server}
  victim.kill()
  victim.wait()
  del os.environ['CRJAX_SECRET']


def filled(text, outside, nonce, mark):
  for name, value in {
    'NONCE': nonce,
    'PORT': outside['server'].getsockname()[1],
    'VICTIM': outside['victim'].pid,
    'SECRETFILE': outside['file'],
    'MARK': mark,
  }.items():
    text = text.replace(name, str(value))
  return text


def state(pool, outside):
  """All that a program should not be able to change."""
  with contextlib.suppress(BlockingIOError):
    outside['server'].accept()
    pytest.fail('a program connected')
  session = pool._links[0].process.pid
  found = subprocess.run(
    ['ps', '-o', 'stat=', '-s', str(session)], capture_output=True, text=True
  ).stdout.split()
  status = outside['file'].stat()
  return {
    'file': (outside['file'].read_text(), status.st_mtime_ns, status.st_mode),
    'around it': sorted(os.listdir(outside['file'].parent)),
    'victim': outside['victim'].poll(),
    'processes': len(found),
    'zombies': sum(x.startswith('Z') for x in found),
    'descriptors': sorted(os.listdir('/proc/self/fd')),
    'builtins': {k: id(v) for k, v in vars(builtins).items() if k != '_'},
    'signals': [signal.getsignal(s) for s in signal.valid_signals()],
    'environment': dict(os.environ),
    'here': os.getcwd(),
    'recursion': sys.getrecursionlimit(),
    'random': random.getstate(),
    'modules': len(sys.modules),
  }


ATTACKS = [
  pytest.param(*case, id=f'{category}-{i}')
  for category, cases in hostile.CASES.items()
  for i, case in enumerate(cases)
]


@pytest.mark.parametrize(('body', 'call', 'expected'), ATTACKS)
def test_an_attack_fails_and_leaves_nothing(
  pool, outside, capfd, body, call, expected
):
  nonce = ''.join(random.SystemRandom().choices(string.ascii_letters, k=24))
  mark = f'crjax-{secrets.token_hex(8)}'
  program = 'def f(x):\n' + '\n'.join(f'  {x}' for x in body.split('\n'))
  case = [
    filled(text, outside, nonce, mark) for text in (program, call, expected)
  ]
  before = state(pool, outside)
  verdict = check(*case, pool=pool)
  assert verdict.kind in KINDS
  assert verdict.kind not in ('pass', 'infra'), verdict
  assert check(*CONTROL[:3], pool=pool).kind == 'pass'
  assert state(pool, outside) == before
  assert capfd.readouterr() == ('', '')
  for place in ('/tmp', '/', '.', outside['file'].parent):
    assert not (pathlib.Path(place) / mark).exists()


@pytest.mark.parametrize('mode', ['py', 'strict'])
def test_honest_programs_pass(pool, mode):
  cases = [Case(*case) for case in hostile.HONEST]
  assert len(cases) >= 30
  # defaultdict and Counter literals have no strict spelling of the first.
  verdicts = check_all(cases, pool=pool, mode=mode)
  failed = [
    (c, v) for c, v in zip(cases, verdicts, strict=True) if v[0] != 'pass'
  ]
  lenient = [c for c, _ in failed if 'defaultdict' in c.program]
  assert len(failed) == len(lenient) == (mode == 'strict'), failed


def test_attacks_among_honest_cases_change_no_verdict(outside):
  """All at once, in shared workers, in a random order."""
  attacks = [
    Case(
      *(
        filled(t, outside, 'q' * 24, 'crjax-mark')
        for t in (
          'def f(x):\n' + '\n'.join(f'  {x}' for x in body.split('\n')),
          call,
          expected,
        )
      )
    )
    for cases in hostile.CASES.values()
    for body, call, expected in cases
  ]
  assert len(attacks) >= 120
  honest = [Case(*case) for case in hostile.HONEST] * 8
  mixed = attacks + honest
  random.Random(0).shuffle(mixed)
  with Pool(2, cpu_seconds=0.2, memory_mb=128) as pool:
    verdicts = check_all(mixed, pool=pool)
  found = {c: v for c, v in zip(mixed, verdicts, strict=True)}
  assert {found[c].kind for c in honest} == {'pass'}
  assert 'pass' not in {found[c].kind for c in attacks}
