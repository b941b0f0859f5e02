"""The pages for newcomers, their commands run line by line in the fake cloud.

What needs Google, Docker or a GPU is left out; the training is a script that
writes down how it was called.
"""

import os
import pathlib
import re
import subprocess

import pytest

from tests import fakecloud
from tests.conftest import ROOT
from tests.test_launch import HEAD, SLURM, eventually

pytestmark = pytest.mark.skipif(not HEAD, reason='not a git checkout')
CALLED = '#!/bin/bash\necho "$JAX_PROCESS_ID $*" >> "$SHARED/called"\n'
# A batch script with its options before it, on two nodes.
SBATCH = """while [[ $1 = --* ]]; do shift; done
SLURM_JOB_ID=7 SLURM_NNODES=2 SLURM_JOB_NODELIST=n[0-1] exec bash "$@" """


def commands(page: str, wanted: str) -> list[str]:
  """The commands of a page's blocks that `wanted` matches somewhere."""
  text = (ROOT / 'docs' / page).read_text()
  blocks = re.findall(r'^```\n(.*?)^```', text, re.MULTILINE | re.DOTALL)
  found = [block for block in blocks if re.search(wanted, block)]
  assert found, f'{page} has no command with {wanted}'
  joined = ''.join(found).replace('\\\n', ' ')
  return [line for line in joined.splitlines() if line.strip()]


@pytest.fixture
def newcomer(tmp_path):
  """run(line, code=0) -> its output, in a checkout of its own."""
  cloud, shared = tmp_path / 'cloud', tmp_path / 'shared'
  env = fakecloud.install(tmp_path / 'bin', cloud, machines=2)
  subprocess.run(
    ['git', 'clone', '-q', '--shared', ROOT, tmp_path / 'crjax'], check=True
  )
  shared.mkdir()
  python = tmp_path / 'venv' / 'python'
  python.parent.mkdir()
  texts = {f'bin/{k}': f'#!/bin/bash\n{v}\n' for k, v in SLURM.items()}
  texts |= {'bin/sbatch': f'#!/bin/bash\n{SBATCH}\n', 'venv/python': CALLED}
  for name, text in texts.items():
    (tmp_path / name).write_text(text)
    (tmp_path / name).chmod(0o755)
  env |= {'SHARED': str(shared), 'CRJAX_PYTHON': str(python)}
  variables = []  # Those that a line sets stay for the next.

  def run(line, code=0):
    if re.fullmatch(r'\w+="[^"]*"', line):
      variables.append(line)
      return ''
    done = subprocess.run(
      ['bash', '-c', '\n'.join([*variables, line])],
      cwd=tmp_path / 'crjax',
      env=env,
      text=True,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      timeout=120,
    )
    assert done.returncode == code, f'{line}\n{done.stdout}'
    return done.stdout

  run.cloud, run.called = cloud, lambda: (shared / 'called').read_text()
  yield run
  fakecloud.end(cloud)


def follow(line: str) -> str:
  """A line that would show a log for ever shows it for two seconds."""
  return f'timeout 2 {line.split("#")[0]}'


def test_the_page_of_tpus(newcomer):
  lines = commands('tpu.md', r'launch/tpu\.sh up')
  (up,) = (line for line in lines if line.startswith('launch/tpu.sh up'))
  assert 'the slice still costs: launch/tpu.sh delete' in newcomer(up)
  assert newcomer.called().count('-m crjax.train') == 2
  assert '--config.data=gs://' in newcomer.called()
  newcomer('launch/tpu.sh delete --name=cr --zone=us-east5-a')
  steps = commands('tpu.md', r'launch/tpu\.sh create')
  for line in steps:
    if ' logs ' in line:
      assert 'ended with 0' in newcomer(follow(line), code=124)
    else:
      newcomer(line)
  assert len(steps) == 9 and newcomer.called().count('-m crjax.train') == 4
  assert not (newcomer.cloud / 'state').exists()  # Nothing costs any more.


def test_the_page_of_gpus_with_ssh(newcomer):
  for machine in ('node0', 'node1'):
    (newcomer.cloud / machine).mkdir()
  for line in commands('gpu.md', r'launch/ssh\.sh'):
    if ' logs ' in line:
      assert 'ended with 0' in newcomer(follow(line), code=124)
    else:
      newcomer(line)
    if ' up ' in line:
      eventually(lambda: newcomer.called().count('\n') == 2)
  lines = sorted(newcomer.called().splitlines())
  assert [line[:16] for line in lines] == [f'{i} -m crjax.train' for i in '01']


def test_the_page_of_gpus_with_slurm(newcomer):
  (line,) = commands('gpu.md', 'sbatch')
  assert 'slurm: ended with 0, restart 0 of 20' in newcomer(line)
  assert newcomer.called().count('-m crjax.train') == 2


def test_what_the_image_copies_and_installs_is_here():
  """Docker itself is not needed: its lines, in a shell, and its paths."""
  text = (ROOT / 'Dockerfile').read_text().replace('\\\n', ' ')
  steps = [line.split(None, 1) for line in text.splitlines() if line.strip()]
  copied = [rest.split()[:-1] for step, rest in steps if step == 'COPY']
  assert all((ROOT / name).exists() for names in copied for name in names)
  (install,) = (rest for step, rest in steps if step == 'RUN')
  for jax, wanted in (('cpu', ''), ('cuda13', ' jax[cuda13]')):
    done = subprocess.run(
      ['sh', '-c', 'pip() { echo "$@"; }\n' + install],
      env=os.environ | {'JAX': jax},
      capture_output=True,
      text=True,
      check=True,
    )
    asked = f'install --no-cache-dir -r requirements.txt{wanted}\n'
    assert done.stdout == asked
  ignored = (ROOT / '.dockerignore').read_text().split()
  assert {'.git', '.venv', 'runs', 'checkpoints'} <= set(ignored)
  command = next(rest for step, rest in steps if step == 'CMD')
  module = pathlib.Path(*re.findall(r'crjax\.(\w+)', command))
  assert (ROOT / 'crjax' / module / '__main__.py').exists()
