import json

import pytest
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
