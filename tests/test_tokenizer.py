import json

import pytest
import sentencepiece
import transformers

from crjax import tokenizer

TASK = {
  'code': "def f(x):\n    return x + '!'",
  'entry': 'f',
  'args': "'vkx'",
  'output': "'vkx!'",
}
CHAT = [
  *tokenizer.messages('output', **TASK),
  {'role': 'assistant', 'content': '<reasoning>\nr\n</reasoning>'},
]


@pytest.fixture(scope='module')
def small(smoke_data):
  return tokenizer.load(smoke_data / 'tokenizer')


def test_a_question_never_holds_its_answer():
  output, given = (
    tokenizer.messages(kind, **TASK)[1]['content']
    for kind in ('output', 'input')
  )
  assert "f('vkx') == ??" in output and "'vkx!'" not in output
  assert "f(??) == 'vkx!'" in given and "('vkx')" not in given
  with pytest.raises(ValueError, match='coverage'):
    tokenizer.messages('coverage', **TASK)


def test_our_template_renders_as_qwens(small, assets):
  qwen = tokenizer.load(assets / 'tokenizers' / 'Qwen2.5-Instruct')
  for generate in (False, True):
    render = lambda tok, generate=generate: tok.apply_chat_template(
      CHAT, tokenize=False, add_generation_prompt=generate
    )
    assert render(small) == render(qwen)


def test_a_qwen2_config_beside_it_changes_nothing(small, smoke_data, tmp_path):
  tokenizer.copy(smoke_data / 'tokenizer', tmp_path)
  (tmp_path / 'config.json').write_text(json.dumps({'model_type': 'qwen2'}))
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  assert type(theirs).__name__.startswith('Qwen2Tokenizer')
  text = small.apply_chat_template(CHAT, tokenize=False)
  assert theirs(text)['input_ids'] == small(text)['input_ids']
  assert theirs.chat_template == small.chat_template
  assert theirs.eos_token_id == small.eos_token_id


def test_letters_of_values_are_single_tokens(small):
  pieces = small.tokenize("x = x.upper() # 'VKxbdg'")
  assert pieces[-8:] == [*"'VKxbdg'"] or pieces[-7:] == [*"VKxbdg'"]
  assert small.tokenize(' return') == ['Ġreturn']


def test_any_text_survives(small):
  text = 'naïve 日本\t\n  x="\U0001f600"'
  assert small.decode(small(text)['input_ids']) == text


@pytest.mark.parametrize('name', ['own', 'Qwen2.5-Instruct', 'Qwen3'])
def test_an_example_is_its_prompt_and_its_completion(name, small, request):
  tok = small
  if name != 'own':
    assets = request.getfixturevalue('assets')
    tok = tokenizer.load(assets / 'tokenizers' / name)
  ids, mask = tokenizer.encode_example(tok, CHAT)
  prompt = tokenizer.encode_prompt(tok, CHAT[:-1])
  assert ids[: len(prompt)] == prompt
  assert mask == [0] * len(prompt) + [1] * (len(ids) - len(prompt))
  completion = tok.decode(ids[len(prompt) :])
  assert completion.endswith(CHAT[-1]['content'] + '<|im_end|>')
  assert ids[-1] in tokenizer.stop_ids(tok)


def test_an_example_must_end_with_the_assistant(small):
  with pytest.raises(ValueError, match='assistant'):
    tokenizer.encode_example(small, CHAT[:-1])


def test_decode_cuts_each_row_at_its_length(small):
  ids = small('abc def')['input_ids']
  rows = [ids + [0] * 3] * 2
  assert tokenizer.decode(small, rows, [len(ids), 1]) == [
    'abc def',
    small.decode(ids[:1]),
  ]


def test_a_directory_without_tokenizer_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'tokenizer_config\.json'):
    tokenizer.load(tmp_path)


CONTENTS = {
  'plain': 'What does f(3) return?',
  'code': 'def f(x):\n    if x > 1:\n\treturn [x] * 2\n    return {"a": None}',
  'unicode': 'naïve 日本語 Ω≈ç√ 👩‍💻 \u200b\ufeff e\u0301',
  'tags': '<reasoning>a</reasoning>\n\n<answer>\n[1, 2]\n</answer>',
  'spaces': '  x  \n\n\n   y\t\t\r\n z',
  'markup': 'He said <|im_start|>user and <tool_call>{"a": 1}</tool_call>',
}
SYSTEMS = {'system': 'You are terse.\nVery.', 'no system': None}


def conversation(system, turns, content):
  """system?, then `turns` questions, all answered but the last."""
  found = [] if system is None else [{'role': 'system', 'content': system}]
  for turn in range(turns):
    found.append({'role': 'user', 'content': f'{turn}: {content}'})
    found.append({'role': 'assistant', 'content': f'{content} / {turn}'})
  return found[:-1]


@pytest.fixture(scope='module')
def real(assets):
  """{name: (our tokenizer, Transformers' own)} of both real ones."""
  return {
    name: (
      tokenizer.load(assets / 'tokenizers' / name),
      transformers.AutoTokenizer.from_pretrained(assets / 'tokenizers' / name),
    )
    for name in ('Qwen2.5-Instruct', 'Qwen3')
  }


@pytest.mark.parametrize('thinking', [None, True, False])
@pytest.mark.parametrize('name', ['Qwen2.5-Instruct', 'Qwen3'])
def test_36_conversations_are_rendered_as_by_transformers(name, thinking, real):
  ours, theirs = real[name]
  switch = {} if thinking is None else {'enable_thinking': thinking}
  seen = 0
  for system in SYSTEMS.values():
    for turns in (1, 2, 3):
      for content in CONTENTS.values():
        chat = conversation(system, turns, content)
        want = theirs.apply_chat_template(
          chat, add_generation_prompt=True, return_dict=False, **switch
        )
        got = tokenizer.encode_prompt(ours, chat, thinking=thinking)
        assert got == want
        answered = [*chat, {'role': 'assistant', 'content': content.strip()}]
        ids, mask = tokenizer.encode_example(ours, answered, thinking=thinking)
        whole = theirs.apply_chat_template(
          answered, return_dict=False, **switch
        )
        assert ids == whole[:-1]  # Without the line break after the turn.
        assert mask == [0] * len(want) + [1] * (len(ids) - len(want))
        seen += 1
  assert seen == 36


def test_the_thinking_switch_closes_the_thoughts_of_qwen3(real):
  ours, _ = real['Qwen3']
  chat = conversation(None, 1, 'x')
  off = ours.decode(tokenizer.encode_prompt(ours, chat, thinking=False))
  on = ours.decode(tokenizer.encode_prompt(ours, chat, thinking=True))
  assert off == on + '<think>\n\n</think>\n\n'
  answered = [*chat, {'role': 'assistant', 'content': '<answer>1</answer>'}]
  ids, mask = tokenizer.encode_example(ours, answered, thinking=False)
  learnt = [i for i, m in zip(ids, mask, strict=True) if m]
  assert ours.decode(learnt) == '<answer>1</answer><|im_end|>'


@pytest.mark.parametrize('start', ['\n', '\n\nx', ' y', '</think>'])
def test_the_mask_starts_where_sampling_starts(start, real):
  """Also where whole-text tokenization would merge across the border."""
  ours, _ = real['Qwen2.5-Instruct']
  chat = conversation('s', 2, 'q')
  prompt = tokenizer.encode_prompt(ours, chat)
  answered = [*chat, {'role': 'assistant', 'content': start}]
  ids, mask = tokenizer.encode_example(ours, answered)
  assert ids[: len(prompt)] == prompt and sum(mask) == len(ids) - len(prompt)
  assert ours.decode(ids[len(prompt) :]) == start + '<|im_end|>'


def test_a_sentencepiece_model_is_a_tokenizer(tmp_path):
  lines = [f'def f(x): return x + {i}; naïve 日本' for i in range(200)]
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(lines),
    model_prefix=str(tmp_path / 'tokenizer'),
    vocab_size=350,
    model_type='bpe',
    byte_fallback=True,
    hard_vocab_limit=False,
    normalization_rule_name='identity',
    remove_extra_whitespaces=False,
    add_dummy_prefix=False,
    minloglevel=2,
  )
  config = {
    'tokenizer_class': 'LlamaTokenizer',
    'eos_token': '</s>',
    'add_prefix_space': False,
  }
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(config))
  tok = tokenizer.load(tmp_path)
  model = sentencepiece.SentencePieceProcessor(
    model_file=str(tmp_path / 'tokenizer.model')
  )
  for text in (*lines[:5], 'x  = [1,\n  2]', 'Ω "quoted"\t'):
    assert tok(text, add_special_tokens=False)['input_ids'] == (
      model.encode(text)
    )
    assert tok.decode(model.encode(text)) == text
  assert tokenizer.stop_ids(tok) == (model.eos_id(),)
  with pytest.raises(ValueError, match='has no chat template'):
    tokenizer.encode_prompt(tok, CHAT)
  (tmp_path / 'chat_template.jinja').write_text(tokenizer.CHAT_TEMPLATE)
  prompt = tokenizer.encode_prompt(tokenizer.load(tmp_path), CHAT[:-1])
  assert 'assistant\n' in tok.decode(prompt)


def test_a_vocabulary_that_does_not_fit_is_an_error(small):
  last = max(small.get_vocab().values())
  tokenizer.check(small, last + 1, 'vocab_size')
  tokenizer.check(small, last + 1000, 'vocab_size')  # Padded.
  with pytest.raises(ValueError, match=rf'vocab_size of m has {last} rows'):
    tokenizer.check(small, last, 'vocab_size of m')


@pytest.mark.parametrize('text', ['Q1: 3\nQ2: [1]; list', 'é€😀 ab\n\n x  y😀'])
def test_the_tokens_of_a_span_write_it_and_no_whole_token_more(small, text):
  tokens = small(text + '<|im_end|>')['input_ids']
  whole = [
    (a, b) for a in range(len(text)) for b in range(a + 1, len(text) + 1)
  ]
  found = tokenizer.token_spans(small, tokens, whole)
  for (a, b), (start, stop) in zip(whole, found, strict=True):
    assert text[a:b] in small.decode(tokens[start:stop])
    # Only the first and the last may write more than the span.
    assert (
      small.decode(tokens[start + 1 : stop - 1]).strip('\ufffd') in text[a:b]
    )
