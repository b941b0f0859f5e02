"""The page about runs, in a real browser over files that runs would write."""

import json
import threading
import urllib.error
import urllib.request

import datasets
import numpy as np
import pytest

from crjax import metrics, sampling, watch
from crjax.report import build, gather, live, rows
from tests import browser

CODE = 'def f(xs):\n  total = 0\n  for x in xs:\n    total += x\n  return total'
CHAIN = (
  '<reasoning>\nLine 2 makes total 0.\nThen the loop adds: line 4 gives {x}.\n'
  '</reasoning>\n<answer>\n{x}\n</answer>'
)


def completion(i):
  """Row i: kinds alternate, two of three are right, </script> is text."""
  right, kind = i % 3 > 0, ('output', 'input')[i % 2]
  return {
    'row': i,
    'reward': float(right),
    'text': CHAIN.format(x=i) + ' </script><b>&amp;' * (i % 7 == 0),
    'id': f'{i}-{kind}',
    'kind': kind,
    'code': CODE + '\n' * (i % 2),
    'entry': 'f',
    'args': f'[{i}]',
    'output': str(i),
    'answer': str(i if right else i + 1),
    'format_ok': True,
    'verdict': 'pass' if right else 'wrong',
    'right': right,
    'typed': right,
    'value': str(i),
    'detail': '',
    'advantage': 0.5,
    'tokens': [5] * (40 + i % 100),
    'length': 40 + i % 100,
    'truncated': False,
    'logp': -1.5,
  }


def write_training(path, count, steps=120, task='grpo'):
  path.mkdir(parents=True)
  lines = [
    {'step': s, 'tokens': 1000, 'time': float(s), 'time/step_s': 0.5}
    | {'loss': 1 / s, 'reward': 1 - 1 / s, 'perf/tokens_per_s': 2000.0}
    for s in range(1, steps + 1)
  ]
  text = ''.join(json.dumps(line) + '\n' for line in lines)
  (path / 'metrics.jsonl').write_text(text + '{"step": 12')  # Torn.
  (path / 'config.json').write_text(json.dumps({'task': task, 'steps': steps}))
  if count:
    (path / 'samples').mkdir()
    table = datasets.Dataset.from_list([completion(i) for i in range(count)])
    table.to_parquet(str(path / 'samples' / f'step_{steps:06d}.parquet'))


def write_evaluation(path, right):
  """Greedy answers to as many items as `right` has."""
  path.mkdir(parents=True)
  items = [
    completion(i)
    | {'mode': 'greedy', 'sample': 0, 'right': bool(ok), 'tokens': 40 + i}
    | {'length': None}
    for i, ok in enumerate(right)
  ]
  datasets.Dataset.from_list(items).to_parquet(str(path / 'items.parquet'))
  numbers = {
    'strict': float(np.mean(right)),
    'ci95': [0.2, 0.7],
    'official': 0.5,
    'typed': 0.4,
    'format_rate': 1.0,
    'truncated': 0.0,
    'samples': 1,
    'infra': 0,
    'too_long': 0,
  }
  kinds = {'output': {'n': len(right), 'greedy': numbers, 'by': {}}}
  report = {
    'kinds': kinds,
    'settings': {'model': 'm'},
    'command': 'python x',
  }
  (path / 'report.json').write_text(json.dumps(report))


@pytest.fixture
def runs(tmp_path):
  root = tmp_path / 'runs'
  write_training(root / 'sft', 0, task='sft')
  write_training(root / 'grpo', 600)
  write_evaluation(root / 'eval' / 'a', [1, 1, 1, 1, 1, 1, 0, 0, 0, 0])
  write_evaluation(root / 'eval' / 'b', [0, 0, 0, 0, 0, 1, 0, 0, 0, 0])
  (root / 'data').mkdir()
  manifest = {
    'rows': {'heldout': 40},
    'dropped_programs': {'too long': 5, 'same program': 9},
    'constant_baseline': {'output': 0.25},
  }
  (root / 'data' / 'manifest.json').write_text(json.dumps(manifest))
  return root


@pytest.fixture
def tab(tmp_path):
  if not browser.find():
    pytest.skip('no Chromium on the PATH, and CRJAX_BROWSER names none')
  with browser.page(tmp_path / 'profile') as page:
    yield page


def choose(tab, **values):
  """Sets filters as a person does; the text of the count."""
  for name, value in values.items():
    field = f"document.getElementById('filters').elements['{name}']"
    tab.evaluate(
      f'{field}.value = {json.dumps(value)};'
      f"{field}.dispatchEvent(new Event('input', {{bubbles: true}}))"
    )
  return tab.evaluate("document.getElementById('count').textContent")


def test_everything_is_found_and_named_shortly(runs):
  found = gather.find([runs])
  named = gather.names([p for some in found for p in some])
  assert sorted(named.values()) == ['data', 'eval/a', 'eval/b', 'grpo', 'sft']
  told = gather.read(found)
  curve = next(t for t in told['trainings'] if t['name'] == 'grpo')
  assert curve['series']['loss'][0] == [1, 1.0] and curve['steps'] == 120
  assert told['datasets'][0]['funnel'] == [
    ('dropped: same program', 9),
    ('dropped: too long', 5),
    ('kept: heldout', 40),
  ]
  pair = {p['kind']: p for p in told['pairs']}['output']
  assert pair['n'] == 5 and pair['only_a'] == 3 and pair['only_b'] == 0


def test_a_long_curve_keeps_its_mean_and_its_end():
  points = [(i, float(i)) for i in range(1, 4001)]
  thin = gather.thinned(points)
  assert len(thin) <= gather.POINTS and thin[-1][0] == 4000
  assert np.mean([y for _, y in thin]) == pytest.approx(2000.5)


def test_nothing_to_report_says_what_was_looked_for(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'no metrics\.jsonl'):
    gather.find([tmp_path])
  with pytest.raises(FileNotFoundError, match='is no directory'):
    gather.find([tmp_path / 'none'])


def test_the_most_completions_leave_out_older_steps(runs):
  found = gather.find([runs])
  named = gather.names([p for some in found for p in some])
  some, left, _ = rows.read(rows.sources(found, named), most=100)
  assert len(some) == 20 and left == 600


def test_the_page_in_a_browser(runs, tab, tmp_path):
  path = tmp_path / 'page.html'
  path.write_text(build.page([runs]))
  tab.screen(1280, 900)
  tab.open(path.as_uri())
  curves = tab.evaluate(
    "[...document.querySelectorAll('#curves polyline')]"
    ".map((x) => x.getAttribute('points').split(' ').length)"
  )
  assert len(curves) >= 8 and min(curves) == 120
  widths = "document.querySelector('#curves polyline').getBBox().width"
  assert tab.evaluate(widths) > 200
  text = tab.evaluate("document.getElementById('results').textContent")
  assert '60.0' in text and 'McNemar' in text and '25.0 %' in text
  funnel = tab.evaluate("document.getElementById('data').textContent")
  assert 'dropped: same program' in funnel
  assert choose(tab) == '620 of 620 completions, 65.6 % right'
  assert choose(tab, kind='0', right='0').startswith('106 of')  # Inputs, wrong.
  assert choose(tab, kind='', right='1', run='2').startswith('400 of')
  tab.evaluate("document.getElementById('filters').reset()")
  tab.wait("document.getElementById('count').textContent.startsWith('620')")
  tokens = {'length from': '40', 'length to': '44'}
  assert choose(tab, **tokens).startswith('40 of')  # 30 and twice 5.
  assert tab.errors == []
  assert tab.requests == [path.as_uri()]


def test_a_completion_is_read_with_its_program_and_trace(runs, tab, tmp_path):
  path = tmp_path / 'page.html'
  path.write_text(build.page([runs / 'grpo']))
  tab.screen(390, 800)  # A phone's.
  tab.open(path.as_uri())
  tab.evaluate('document.querySelector(\'[data-row="7"]\').click()')
  tab.wait("document.querySelector('#detail .code')")
  detail = tab.evaluate("document.getElementById('detail').textContent")
  assert 'total = 7' in detail and 'f([7])' in detail
  assert '</script><b>&amp;' in detail  # As it was written.
  assert not tab.evaluate("document.querySelectorAll('#detail b').length")
  tab.evaluate(
    "[...document.querySelectorAll('#detail .step')]"
    ".find((x) => x.textContent.includes('line 4 gives')).click()"
  )
  lit = "document.querySelector('.codeline.on').dataset.line"
  assert tab.evaluate(lit) == '4'
  wide = 'document.documentElement.scrollWidth <= window.innerWidth'
  assert tab.evaluate(wide)
  assert tab.errors == []


def test_100_000_completions_stay_quick(tab, tmp_path):
  write_training(tmp_path / 'run', 100_000)
  path = tmp_path / 'page.html'
  path.write_text(build.page([tmp_path / 'run']))
  tab.screen(1280, 900)
  tab.open(path.as_uri())
  paint = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
  assert tab.evaluate(paint) < 2000
  assert choose(tab, kind='0', right='1').startswith('33,333 of 100,000')
  assert choose(tab, **{'reward from': '0.5'}).startswith('33,333')
  times = tab.evaluate(
    "performance.getEntriesByName('filter').map((x) => x.duration)"
  )
  print(f'first paint {tab.evaluate(paint):.0f} ms, filters {times} ms')
  assert len(times) >= 4 and max(times) < 300
  rows_drawn = "document.querySelectorAll('.row').length"
  assert tab.evaluate(rows_drawn) < 100
  assert tab.errors == []


def test_a_live_page_is_local_and_moves_on(runs):
  with live.make_server([runs], 0, 1000) as server:
    assert server.server_address[0] == '127.0.0.1'
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f'http://127.0.0.1:{server.server_port}'
    read = lambda path: urllib.request.urlopen(url + path).read().decode()
    before = read('/version')
    assert before in read('/')
    with (runs / 'sft' / 'metrics.jsonl').open('a') as file:
      file.write('1, "loss": 0.5}\n')
    assert read('/version') != before
    assert read('/version') in read('/')
    foreign = urllib.request.Request(url, headers={'Host': 'example.com:80'})
    with pytest.raises(urllib.error.HTTPError, match='403'):
      urllib.request.urlopen(foreign)
    server.shutdown()


def test_samples_as_training_writes_them(tmp_path):
  """Tokens are ids there; of an evaluation they are a number."""
  count = 4
  some = [completion(i) for i in range(count)]
  mask_BT = np.arange(6) < np.array([[6], [3], [2], [1]])
  rolled = sampling.Rollout(
    np.full((count, 6), 7, np.int32),
    np.zeros((count, 6), np.float32),
    mask_BT,
    np.ones(count, bool),
  )
  watch.describe(some, np.zeros((2, 2)), rolled)
  with metrics.Writer(tmp_path, start_step=0, total_steps=1) as writer:
    writer.write(1, {'reward': 1.0}, tokens=12)
    writer.samples(1, some)
  found = gather.find([tmp_path])
  named = gather.names([p for some in found for p in some])
  read, left, notes = rows.read(rows.sources(found, named))
  assert [rows.length(row) for row in read] == [6, 3, 2, 1]
  assert (left, notes) == (0, [])
  assert 'Chain' in build.page([tmp_path])


def test_what_is_damaged_is_told_and_the_rest_is_shown(runs, tab, tmp_path):
  (runs / 'eval' / 'a' / 'report.json').write_text('{"kinds": ')
  (runs / 'eval' / 'b' / 'report.json').write_text('[<b>1</b>]')
  (runs / 'data' / 'manifest.json').write_text('[1]')
  items = runs / 'eval' / 'b' / 'items.parquet'
  items.write_bytes(items.read_bytes()[:-50])
  samples = next((runs / 'grpo' / 'samples').iterdir())
  samples.write_bytes(b'PAR1')
  with (runs / 'grpo' / 'metrics.jsonl').open('a') as file:
    file.write('\n{"loss": 3}\n')
  (runs / 'sft' / 'metrics.jsonl').write_text('')
  (runs / 'grpo' / 'config.json').unlink()
  path = tmp_path / 'page.html'
  path.write_text(build.page([runs]))
  tab.screen(1280, 900)
  tab.open(path.as_uri())
  notes = tab.evaluate(
    "[...document.querySelectorAll('#notes li')].map((x) => x.textContent)"
  )
  for name in (items, samples, *runs.glob('eval/*/report.json')):
    assert sum(str(name) in note for note in notes) == 1, name
  assert any(
    'metrics.jsonl: 2 damaged lines, the first is 121' in n for n in notes
  )
  assert any('manifest.json is damaged: no JSON object' in n for n in notes)
  assert choose(tab).startswith('10 of 10 completions')  # Those of eval/a.
  assert tab.evaluate("document.querySelectorAll('#curves polyline').length")
  assert tab.errors == []


def test_a_live_page_leaves_a_reader_alone(runs, tab):
  with live.make_server([runs], 0, 1000) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    tab.screen(1280, 900)
    tab.open(f'http://127.0.0.1:{server.server_port}')
    grow = lambda step: (
      (runs / 'grpo' / 'metrics.jsonl')
      .open('a')
      .write(f'\n{{"step": {step}, "reward": 0.5}}\n')
    )
    told = "document.getElementById('curves')?.textContent"
    grow(121)
    tab.wait(f"{told}?.includes('grpo, 121 of 120')")  # By itself.
    tab.wait('document.body?.dataset.ready === "yes"')
    tab.evaluate('document.querySelector(\'[data-row="7"]\').click()')
    grow(122)
    tab.wait("document.getElementById('newer')")
    assert tab.evaluate("document.querySelectorAll('.row.open').length") == 1
    tab.evaluate("document.getElementById('newer').click()")
    tab.wait(f"{told}?.includes('grpo, 122 of 120')")
    assert tab.errors == []
    server.shutdown()
