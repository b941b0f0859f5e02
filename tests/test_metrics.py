import json
import math

import datasets
import pytest
import tensorflow as tf

from crjax import metrics

ROW = {
    'kind': 'output',
    'code': 'def f(x):\n    return x',
    'entry': 'f',
    'args': '[1]',
    'output': '[1]',
    'text': '<answer>[bold]1</answer>',
    'reward': 1.0,
    'advantage': 0.5,
}


def lines(path):
  return [json.loads(x) for x in (path / 'metrics.jsonl').open()]


def write(path, steps, start=0, **scalars):
  with metrics.Writer(path, start_step=start, total_steps=9) as writer:
    for step in steps:
      writer.write(step, {'loss': 1 / step, **scalars}, tokens=10)


def test_every_step_is_one_line_with_its_speed(tmp_path):
  write(tmp_path, [1, 2, 3])
  got = lines(tmp_path)
  assert [x['step'] for x in got] == [1, 2, 3]
  assert got[1]['loss'] == 0.5
  assert all(x['perf/tokens_per_s'] > 0 and x['tokens'] == 10 for x in got)


def test_a_resumed_run_has_every_step_once(tmp_path):
  write(tmp_path, [1, 2, 3, 4])
  with (tmp_path / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 5, "lo')  # Torn by a kill.
  write(tmp_path, [3, 4, 5], start=2)
  assert [x['step'] for x in lines(tmp_path)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_null(tmp_path, value):
  write(tmp_path, [1], odd=value)
  assert lines(tmp_path)[0]['odd'] is None


def test_event_files_hold_the_same_numbers(tmp_path):
  write(tmp_path, [1, 2])
  (path,) = tmp_path.glob('events.*')
  found = [
      (event.step, tf.make_ndarray(value.tensor).item())
      for event in tf.compat.v1.train.summary_iterator(str(path))
      for value in event.summary.value
      if value.tag == 'loss'
  ]
  assert found == [(1, 1.0), (2, 0.5)]


def test_samples_are_a_file_and_a_table(tmp_path, capsys):
  rows = [ROW | {'reward': float(i % 2), 'row': i} for i in range(8)]
  with metrics.Writer(tmp_path, start_step=0, total_steps=9) as writer:
    writer.samples(4, rows)
  path = tmp_path / 'samples' / 'step_000004.parquet'
  read = datasets.Dataset.from_parquet(str(path)).to_list()
  assert read == rows
  shown = capsys.readouterr().out
  assert 'samples of step 4' in shown
  assert '[bold]1' in shown  # Model text is not markup.


@pytest.mark.parametrize(
    ('seconds', 'text'),
    [(5, '5 s'), (184, '3 min 04 s'), (3725, '1 h 02 min')],
)
def test_clock(seconds, text):
  assert metrics.clock_text(seconds) == text
