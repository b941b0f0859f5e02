import json
import math
import resource

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
  'answer': '[bold]1',
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


def events(path):
  """Every event of a run directory, in the order of its files."""
  for file in sorted(path.glob('events.*')):
    yield from tf.compat.v1.train.summary_iterator(str(file))


def test_event_files_hold_the_same_numbers(tmp_path):
  write(tmp_path, [1, 2], odd=math.nan)
  found = [
    (event.step, value.simple_value)
    for event in events(tmp_path)
    for value in event.summary.value
    if value.tag == 'loss'
  ]
  assert found == [(1, 1.0), (2, 0.5)]


def test_a_resumed_run_tells_tensorboard_where_it_starts(tmp_path):
  write(tmp_path, [1, 2, 3, 4])
  write(tmp_path, [3, 4, 5], start=2)
  starts = [
    event.step
    for event in events(tmp_path)
    if event.session_log.status == tf.compat.v1.SessionLog.START
  ]
  assert starts == [3]


def test_a_full_disk_names_the_file_and_the_way_out(tmp_path):
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  writer = metrics.Writer(tmp_path, start_step=0, total_steps=9)
  try:
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    with pytest.raises(OSError, match='run the same command again') as error:
      writer.write(1, {'loss': 1.0}, tokens=10)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    writer.close()
  assert error.value.filename == str(tmp_path / 'metrics.jsonl')


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


def test_tables_are_shown_now_and_then_and_at_the_end(tmp_path, capsys):
  with metrics.Writer(tmp_path, start_step=0, total_steps=9) as writer:
    for step in (1, 2, 9):
      writer.samples(step, [ROW])
  assert len(list((tmp_path / 'samples').iterdir())) == 3
  shown = capsys.readouterr().out
  assert [f'samples of step {i}' in shown for i in (1, 2, 9)] == [
    True,
    False,
    True,
  ]


def test_a_table_of_unjudged_rewards_ends_with_them():
  rows = [ROW | {'reward': r, 'answer': None} for r in (math.nan, 0.0, 1.0)]
  column = metrics.sample_table(1, rows).columns[4]
  assert list(column.cells) == ['1', '0', 'nan']


@pytest.mark.parametrize(
  ('seconds', 'text'),
  [(5, '5 s'), (184, '3 min 04 s'), (3725, '1 h 02 min')],
)
def test_clock(seconds, text):
  assert metrics.clock_text(seconds) == text


def test_alarms_are_printed_once_written_each_time_and_survive_a_resume(
  tmp_path, capsys
):
  def alarms(lines):
    high = [line['step'] for line in lines if line['loss'] > 0.3]
    return {'high': f'steps {high}'} if len(high) >= 3 else {}

  def run(steps, start):
    with metrics.Writer(
      tmp_path, start_step=start, total_steps=9, alarms=alarms
    ) as writer:
      for step in steps:
        writer.write(step, {'loss': 1 / step}, tokens=1)
    return capsys.readouterr().out

  assert 'ALARM' not in run([1, 2], 0)
  shown = run([3, 4, 5], 2)
  assert shown.count('ALARM high: steps [1, 2, 3]') == 1
  assert [x.get('alarm/high') for x in lines(tmp_path)] == [None, None, 1, 1, 1]


def test_a_training_step_shows_what_its_devices_did(tmp_path):
  with metrics.Writer(
    tmp_path, start_step=0, total_steps=9, chips=4, peak=1e12
  ) as writer:
    writer.write(1, {}, tokens=60, slots=80, flops=8e9)
  (line,) = lines(tmp_path)
  seconds = line['time/step_s']
  assert line['useful'] == 0.75
  assert line['perf/tokens_per_s_chip'] == pytest.approx(15 / seconds)
  assert line['perf/mfu'] == pytest.approx(2e9 / seconds / 1e12)


def test_a_device_is_known_by_its_kind():
  assert metrics.peak('TPU v5 lite') == 197e12
  assert metrics.peak('TPU v5') == 459e12
  assert metrics.peak('NVIDIA H200') == 989e12
  assert metrics.peak('cpu') is None
