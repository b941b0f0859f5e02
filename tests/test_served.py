"""Builds with a generator, a policy and a teacher, asked over HTTP."""

import collections
import json
import re
import signal
import subprocess
import time

import pytest

from crjax import rewards
from crjax.execution import Pool
from data_pipeline import distill, served
from tests.chat_server import FAULTS, USAGE, Server
from tests.conftest import ROOT
from tests.exam import (
  CANDIDATES,
  CONCURRENCY,
  MODELS,
  SAMPLES,
  SECRET,
  SPLITS,
  TRIED,
  TRIES,
  Exam,
  asks,
  command,
  draw,
  load,
  run,
  with_preface,
)
from tests.serving import serve, small_model
from tests.test_propose import config


@pytest.fixture(scope='module')
def school(tmp_path_factory):
  """(server, exam, a build that asked all roles and met no trouble)."""
  directory, exam = tmp_path_factory.mktemp('school'), Exam()
  with Server(exam) as server:
    run(directory / 'first', TRIED, *asks(server, 'generator'))
    for rows in load(directory / 'first').values():
      exam.learn(rows)
    server.asked.clear(), server.answered.clear(), server.bodies.clear()
    exam.printed = run(directory / 'whole', SPLITS, *asks(server, *MODELS))
    yield server, exam, directory / 'whole'


@pytest.fixture(scope='module')
def rows(school):
  return load(school[2])


@pytest.fixture(scope='module')
def manifest(school):
  return json.loads((school[2] / 'manifest.json').read_text())


def test_every_chain_is_right_and_says_where_it_is_from(rows):
  some = rows['sft_train']
  tasks = [{'kind': r['kind']} | r['verify'] for r in some]
  texts = [r['messages'][-1]['content'] for r in some]
  with Pool(1) as pool:
    worth, _ = rewards.score(tasks, texts, [False] * len(some), pool)
  assert (worth == 1).all()
  limits = {'shortest': 40, 'longest': 8000}
  sources = collections.Counter(row['chain'] for row in some)
  assert set(sources) == {'professor', 'trace'} and min(sources.values()) > 2
  for row, text in zip(some, texts, strict=True):
    if row['chain'] == 'professor':
      assert not distill.fault(text, 'stop', '', limits)


def test_the_shortest_right_sample_is_taken(school, rows):
  """What the server said, sample by sample, leads to the same chains."""
  server, exam, _ = school
  said = collections.defaultdict(list)
  for body in server.bodies:
    if body['model'] == 'professor':
      said[body['messages'][1]['content']].append(exam(body))
  for row in rows['sft_train']:
    question, gold = (
      row['messages'][1]['content'],
      row['messages'][2]['content'],
    )
    samples = said[question]
    assert len(samples) == SAMPLES
    right = [
      text
      for text in samples
      if text in (exam.gold[question], with_preface(exam.gold[question]))
    ]
    best = min(right, key=len, default=exam.gold[question])
    assert gold == best
    assert (row['chain'] == 'professor') == bool(right)


def test_kept_rows_are_in_the_band_of_difficulty(rows, manifest):
  splits = manifest['summary']['difficulty']
  assert {k: len(v) for k, v in rows.items()} == SPLITS
  for split, (low, high) in {'sft_train': (0, 3), 'rl_train': (1, 4)}.items():
    assert {r['passed'] for r in rows[split]} <= set(range(low, high + 1))
    assert splits[split]['kept'] == SPLITS[split]
    assert sum(splits[split].values()) == TRIED[split]
  assert splits['sft_train']['too easy'] and splits['rl_train']['too hard']
  assert {r['passed'] for r in rows['dev'] + rows['test']} == {None}


def test_what_was_asked_is_counted_and_paid_once(school, rows, manifest):
  server, _, _ = school
  assert set(server.asked.values()) == {1}  # Nothing was asked twice.
  models = collections.Counter(body['model'] for body in server.bodies)
  found = {one['role']: one for one in manifest['summary']['models']}
  assert list(found) == list(MODELS)
  for role, one in found.items():
    n = models[MODELS[role]]
    sizes = USAGE['prompt_tokens'] * n, USAGE['completion_tokens'] * n
    assert one == {
      'role': role,
      'model': MODELS[role],
      'endpoints': [server.url],
      'answers': n,
      'tokens_in': sizes[0],
      'tokens_out': sizes[1],
      'dollars': round((2 * sizes[0] + 10 * sizes[1]) / 1e6, 4),
    }
  assert models['writer'] == CANDIDATES
  assert models['student'] <= TRIES * (TRIED['sft_train'] + TRIED['rl_train'])
  summary = manifest['summary']
  assert sum(summary['samples'].values()) == SAMPLES * SPLITS['sft_train']
  assert sum(summary['chains'].values()) == SPLITS['sft_train']
  assert set(summary['samples']) >= {
    *('kept', 'wrong', 'cut off', 'repetition', 'another language'),
    *('a tag is missing', 'a tag is doubled', 'right, not the shortest'),
  }


def test_progress_has_rates_cost_and_what_is_left(school):
  for role in MODELS:
    *_, last = re.findall(f'data: {role}: .*', school[1].printed)
    assert re.fullmatch(
      rf'data: {role}: (\d+) of \1 answers, [\d.]+ requests/s, [\d,]+ tokens/s,'
      r' \d+ s, about 0 s left, \$\d\.\d\d so far',
      last,
    )


def test_a_run_that_stops_says_what_it_has_and_how_to_go_on(tmp_path):
  c, target = config(), tmp_path / 'programs'
  c.out, c.candidates, c.client.concurrency = str(tmp_path / 'out'), 40, 1
  c.generator.model, c.chunk = 'writer', 20
  refuse = lambda n, _: 'status 401' if n == 25 else ''
  with Server(Exam(), refuse) as server:
    c.generator.url = server.url.replace('://', '://me:secret@')
    with pytest.raises(SystemExit) as stopped:
      served.programs(c, (0, 1), target, [0, 1])
    said = str(stopped.value)
    assert '25 answers are in' in said and 'the same command goes on' in said
    assert 'no such key' in said and 'secret' not in said
    assert [p.name for p in target.iterdir()] == ['000000.jsonl']
    served.programs(c, (0, 1), target, [1])
    assert server.asked.total() == 41 and len(server.answered) == 40
  assert len(served.every(target, 2)) == 40


@pytest.mark.parametrize(
  ('url', 'said'),
  [('http://localhost:1/v1', 'teacher.model'), ('localhost:1', 'http://')],
)
def test_a_server_that_cannot_be_asked_is_refused(url, said):
  c = config()
  assert served.roles(c) == {}
  c.teacher.url = url
  with pytest.raises(SystemExit, match=said):
    served.roles(c)


def test_the_funnel_adds_up_with_models(rows, manifest):
  found = manifest['summary']
  dropped = found['dropped_programs']
  pids = {r['pid'] for some in rows.values() for r in some}
  assert found['programs'] == len(pids)
  assert found['candidates'] == CANDIDATES
  assert CANDIDATES == found['programs'] + sum(dropped.values())
  assert min(dropped.values()) >= 0
  assert dropped['model: cut off'] and dropped['model: no code block']


def test_the_card_tells_of_models_and_shows_what_was_rejected(school):
  text = (school[2] / 'README.md').read_text()
  assert '\n## Models\n' in text and 'Programs that writer wrote' in text
  for reason in ('model: no code block', 'sample: wrong', 'sample: repetition'):
    assert f'\n{reason}:\n\n````\n' in text


def test_no_secret_is_written(school):
  server, _, out = school
  assert f'Bearer {SECRET}' in server.headers[-1].values()
  for path in out.parent.rglob('*'):
    assert path.is_dir() or SECRET.encode() not in path.read_bytes(), path


def test_trouble_and_kills_change_no_byte_and_ask_nothing_twice(
  school, tmp_path
):
  """Killed while each role is asked; the server fails, dies and comes back.

  The cases are made by two shards that know nothing of each other, of which
  one is killed; what it had is in the files that the others read.
  """
  server, _, whole = school
  out = tmp_path / 'troubled'
  flags = tuple(asks(server, *MODELS))
  server.asked.clear(), server.answered.clear(), server.bodies.clear()
  faults = sorted(set(FAULTS) - {'', 'hang', 'status 401', 'status 429'})
  met = set()

  def fault(_, key):
    if key in met or draw(key).random() < 0.8:
      return ''
    met.add(key)
    return draw('which', key).choice(faults)

  server.fault = fault
  known = []
  try:
    for shard, role in (('0/2', 'generator'), ('', 'policy'), ('', 'teacher')):
      here = ('--stage=cases', f'--shard={shard}') if shard else ()
      known += killed(server, out, role, command(out, SPLITS, *flags, *here))
      if shard:
        run(out, SPLITS, *flags, '--stage=cases', '--shard=1/2')
    run(out, SPLITS, *flags)
  finally:
    server.fault = lambda *_: ''
  assert met and len(known) == len(MODELS)
  for seeds, rest in known:
    asked_again = {body['seed'] for body in server.bodies[rest:]}
    assert seeds and not seeds & asked_again
  again = {n for n in server.answered.values() if n > 1}
  lost = sum(n - 1 for n in server.answered.values())
  assert lost <= len(MODELS) * CONCURRENCY and again <= {2}
  for path in whole.iterdir():
    assert path.read_bytes() == (out / path.name).read_bytes(), path.name


def killed(server, out, role, started):
  """Kills a build that asks in a role: [(seeds in the journal, requests)].

  On the way the server dies once and comes back.
  """
  model = MODELS[role]
  count = lambda: sum(body['model'] == model for body in server.bodies)
  process = subprocess.Popen(
    started,
    cwd=ROOT,
    stdout=subprocess.DEVNULL,
    env={'PATH': '/usr/bin:/bin', 'OPENAI_API_KEY': SECRET},
  )
  wait_for(lambda: count() >= 8, process)
  server.stop()
  time.sleep(0.3)
  server.start()
  wait_for(lambda: count() >= 30, process)
  process.send_signal(signal.SIGKILL)
  assert process.wait() == -signal.SIGKILL
  time.sleep(0.5)  # What the server still works on.
  files = (out.with_name(f'{out.name}.answers') / role).glob('*.jsonl')
  lines = [x for f in files for x in f.read_text().split('\n')[:-1]]
  keys = {json.loads(line)['key'] for line in lines}
  return [({int(key[:7], 16) for key in keys}, len(server.bodies))]


def wait_for(condition, process):
  deadline = time.monotonic() + 120
  while not condition():
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.002)


@pytest.mark.slow
def test_our_own_sampler_is_asked_and_turned_down(tmp_path):
  """A random model through `crjax.serve`: nothing it says is taken."""
  out, rl = tmp_path / 'own', {'sft_train': 6, 'rl_train': 3}
  model = small_model(tmp_path)
  with serve(model, '--max_length=4096') as server:
    run(
      out,
      rl | {'dev': 1, 'test': 1},
      *(f'--config.{r}.url={server.url}' for r in ('policy', 'teacher')),
      *(f'--config.{r}.model={server.name}' for r in ('policy', 'teacher')),
      *(f'--config.{r}.max_tokens=12' for r in ('policy', 'teacher')),
      '--config.candidates=20',
      '--config.policy.samples=2',
      '--config.policy.spare=1',
      '--config.policy.keep.rl_train=(0, 0)',
      '--config.teacher.samples=2',
    )
  found = json.loads((out / 'manifest.json').read_text())['summary']
  policy, teacher = found['models']
  assert (policy['answers'], teacher['answers']) == (2 * 9, 2 * 6)
  for one in (policy, teacher):
    assert one['endpoints'] == [server.url]
    assert 0 < one['tokens_out'] <= 12 * one['answers'] < one['tokens_in']
  assert sum(found['samples'].values()) == 2 * 6
  assert set(found['samples']) <= {'cut off', 'a tag is missing'}
  assert found['chains'] == {'of the trace': 6}
  rows = load(out)
  assert {r['passed'] for r in rows['sft_train'] + rows['rl_train']} == {0}
  assert {r['chain'] for r in rows['sft_train']} == {'trace'}
