import dataclasses
import json
import os
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import pytest

from crjax import generate, hf, model, tokenizer
from tests.conftest import ROOT

CFG = model.Config(V=64, L=1, D=16, F=24, N=4, K=2, H=8, tied=True)


@pytest.fixture(scope='module')
def small(tmp_path_factory):
  path = tmp_path_factory.mktemp('model') / 'hf'
  params = jax.device_get(model.init(CFG, jax.random.key(0)))
  hf.save(path, CFG, params)
  return path


def start(model_dir, prompts, out, *flags, devices=1):
  args = {
    'model': model_dir,
    'prompts': prompts,
    'out': out,
    'temperature': 0,
    'max_new_tokens': 5,
  }
  env = os.environ | {
    'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}'
  }
  return subprocess.Popen(
    [
      sys.executable,
      '-m',
      'crjax.generate',
      *(f'--{k}={v}' for k, v in args.items()),
      *flags,
    ],
    cwd=ROOT,
    env=env,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def command(*args, **kwargs):
  with start(*args, **kwargs) as process:
    out, err = process.communicate()
  return subprocess.CompletedProcess(args, process.returncode, out, err)


def write(path, *lines):
  path.write_text('\n'.join(json.dumps(x) for x in lines) + '\n')
  return path


def read(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize('devices', [1, 8])
def test_published_weights_continue_as_published(assets, tmp_path, devices):
  path = assets / 'weights' / 'stories260k-qwen2'
  golden = json.loads((path / 'golden.json').read_text())
  prompts = write(
    tmp_path / 'in.jsonl', {'prompt_ids': golden['prompt_ids'], 'tag': 'a'}
  )
  new = len(golden['greedy_ids']) - len(golden['prompt_ids'])
  done = command(
    path,
    prompts,
    tmp_path / 'out.jsonl',
    f'--max_new_tokens={new}',
    devices=devices,
  )
  assert done.returncode == 0, done.stderr
  (line,) = read(tmp_path / 'out.jsonl')
  assert line['prompt_ids'] + line['ids'] == golden['greedy_ids']
  assert line['text'] == golden['text']
  assert line['tag'] == 'a'


def test_lines_keep_their_order_whatever_their_lengths(small, tmp_path):
  prompts = [{'prompt_ids': [3] * n, 'n': n} for n in (70, 1, 5, 130, 2)]
  path = write(tmp_path / 'in.jsonl', *prompts)
  one = command(small, path, tmp_path / 'a.jsonl')
  two = command(
    small,
    path,
    tmp_path / 'b.jsonl',
    '--batch=2',
    '--mesh=-1,1,2',
    devices=4,
  )
  assert one.returncode == two.returncode == 0, one.stderr + two.stderr
  lines, others = read(tmp_path / 'a.jsonl'), read(tmp_path / 'b.jsonl')
  for a, b in zip(lines, others, strict=True):
    assert a.pop('logp') == pytest.approx(b.pop('logp'), abs=1e-5)
    assert a == b
  assert [x['n'] for x in lines] == [70, 1, 5, 130, 2]
  assert all(len(x['ids']) == 5 and x['text'] is None for x in lines)


def test_a_killed_command_goes_on_where_it_was(small, tmp_path):
  path = write(
    tmp_path / 'in.jsonl', *({'prompt_ids': [3, i % 64]} for i in range(300))
  )
  flags = '--max_new_tokens=40', '--temperature=1', '--batch=2'
  out, partial = tmp_path / 'a.jsonl', tmp_path / 'a.jsonl.partial'
  with start(small, path, out, *flags) as process:
    while process.poll() is None:
      if partial.exists() and partial.read_text().count('\n') > 9:
        process.kill()
      time.sleep(0.01)
    process.communicate()
  assert not out.exists()
  kept = partial.read_text()
  partial.write_text(kept + '{"line": 3, "id')  # A write that was cut off.
  other = command(small, path, out, *flags, '--seed=1')
  assert 'other settings or prompts; remove it' in other.stderr
  again = command(small, path, out, *flags)
  assert again.returncode == 0, again.stderr
  assert not partial.exists()
  whole = command(small, path, tmp_path / 'b.jsonl', *flags, '--batch=16')
  assert whole.returncode == 0, whole.stderr
  close = lambda line: line | {'logp': pytest.approx(line['logp'], abs=1e-4)}
  lines = read(out)
  assert lines == list(map(close, read(tmp_path / 'b.jsonl')))
  first = json.loads(kept.split('\n')[1])
  line = lines[first.pop('line')]
  assert {name: line[name] for name in first} == first  # Not computed again.


def test_messages_go_through_the_template_and_log_probs_are_scores(
  smoke_data, tmp_path
):
  cfg = dataclasses.replace(CFG, V=512)
  params = model.init(cfg, jax.random.key(0))
  tokens = smoke_data / 'tokenizer'
  hf.save(tmp_path / 'hf', cfg, jax.device_get(params), source_dir=tokens)
  chat = [{'role': 'user', 'content': 'What is 1 + 1?'}]
  path = write(tmp_path / 'in.jsonl', {'messages': chat}, {'prompt': 'f(x)'})
  done = command(tmp_path / 'hf', path, tmp_path / 'out.jsonl')
  assert done.returncode == 0, done.stderr
  tok, (turn, raw) = tokenizer.load(tokens), read(tmp_path / 'out.jsonl')
  assert turn['prompt_ids'] == tokenizer.encode_prompt(tok, chat)
  assert raw['prompt_ids'] == tok('f(x)')['input_ids']
  for line in (turn, raw):
    assert line['text'] == tok.decode(line['ids'], skip_special_tokens=True)
    row = jnp.array([line['prompt_ids'] + line['ids']])
    logp_BT, _ = model.score(
      cfg,
      params,
      row,
      jnp.ones_like(row, bool),
      start=len(line['prompt_ids']),
      dtype=jnp.float32,
    )
    assert line['logp'] == pytest.approx(logp_BT[0].tolist(), abs=1e-5)


@pytest.mark.parametrize(
  ('line', 'message'),
  [
    ({'prompt_ids': []}, 'line 1: field "prompt_ids" must be one token'),
    ({'prompt_ids': [1.5]}, 'line 1: field "prompt_ids" must be one token'),
    ({'prompt_ids': [True]}, 'line 1: field "prompt_ids" must be one token'),
    ({'prompt_ids': 'a'}, 'line 1: field "prompt_ids" must be one token'),
    ({'prompt_ids': [1, 64]}, r'token 64 is outside the vocabulary, 0\.\.63'),
    ({'prompt_ids': [-1]}, r'token -1 is outside the vocabulary'),
    ({'text': 'a'}, 'line 1: needs a "prompt"'),
    ({'prompt': 'a'}, 'line 1: the model has no tokenizer'),
    ({'messages': [{}]}, 'line 1: the model has no tokenizer'),
    ([1], 'line 1: needs a "prompt"'),
  ],
)
def test_bad_lines_are_named(tmp_path, line, message):
  path = write(tmp_path / 'in.jsonl', line)
  with pytest.raises(ValueError, match=message):
    generate.read_prompts(path, None, CFG.V)


@pytest.mark.parametrize(
  ('prompt', 'message'),
  [
    ('', 'field "prompt" must be one token or more'),
    (5, 'field "prompt" must be a string'),
    ('\ud800', 'field "prompt" holds half a surrogate pair'),
  ],
)
def test_bad_texts_are_named(assets, tmp_path, prompt, message):
  tok = tokenizer.load(assets / 'weights' / 'stories260k-qwen2')
  path = write(tmp_path / 'in.jsonl', {'prompt': 'Once'}, {'prompt': prompt})
  with pytest.raises(ValueError, match=f'line 2: {message}'):
    generate.read_prompts(path, tok, 512)


def test_any_string_is_carried_over(tmp_path):
  path, odd = tmp_path / 'in.jsonl', 'a\u2028b\x85\ud800 \u00e9'
  line = {'prompt_ids': [1], 'note': 'a\u2028b\x85c'}
  path.write_text(json.dumps(line, ensure_ascii=False) + '\r\n', 'utf-8')
  assert generate.read_prompts(path, None, CFG.V) == [line]
  generate.write(tmp_path / 'out.jsonl', [line | {'note': odd}])
  assert read(tmp_path / 'out.jsonl') == [line | {'note': odd}]


def test_other_encodings_are_refused(tmp_path):
  path = tmp_path / 'in.jsonl'
  path.write_bytes(b'{"prompt": "\xff"}\n')
  with pytest.raises(ValueError, match=r'in\.jsonl is not UTF-8'):
    generate.read_prompts(path, None, CFG.V)


def test_bad_files_are_named(small, tmp_path):
  torn = tmp_path / 'in.jsonl'
  torn.write_text('{"prompt_ids": [1]}\n{"pro')
  done = command(small, torn, tmp_path / 'out.jsonl')
  assert done.returncode != 0
  assert 'line 2: not JSON' in done.stderr
  assert 'Traceback' not in done.stderr
  assert not (tmp_path / 'out.jsonl').exists()
  done = command(tmp_path / 'no', torn, tmp_path / 'out.jsonl')
  assert 'no does not exist: not a model directory' in done.stderr


def test_end_tokens_come_from_the_directory(tmp_path):
  assert generate.end_ids(tmp_path) == ()
  (tmp_path / 'config.json').write_text('{"eos_token_id": 3}')
  assert generate.end_ids(tmp_path) == (3,)
  declared = '{"eos_token_id": [1, 2]}'
  (tmp_path / 'generation_config.json').write_text(declared)
  assert generate.end_ids(tmp_path) == (1, 2)
