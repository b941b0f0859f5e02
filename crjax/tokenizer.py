"""Questions as messages, messages as tokens, and a small tokenizer of our own.

Prompts and completions are tokenized apart, here and while sampling, so that a
model is trained on exactly the token boundaries it will meet.
"""

import bisect
import functools
import json
import os
import pathlib
import re
import shutil

import tokenizers
import transformers

FILES = (
  'tokenizer.json',
  'tokenizer_config.json',
  'chat_template.jinja',
  'special_tokens_map.json',
  'added_tokens.json',
  'vocab.json',
  'merges.txt',
  'tokenizer.model',
)
SPECIAL = ('<|endoftext|>', '<|im_start|>', '<|im_end|>')
# ChatML: what Qwen2.5's template renders for system, user and assistant turns.
CHAT_TEMPLATE = (
  '{% for message in messages %}'
  "{{ '<|im_start|>' + message['role'] + '\n' }}"
  "{{ message['content'] + '<|im_end|>' + '\n' }}"
  '{% endfor %}'
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Finer than Qwen's own pieces, for training only: a word, an opened tag, a few
# runs of marks, a mark, white space. What is apart here never merges.
PIECES = r'[ <]?\p{L}+|`+|\?+|</| ?==|\p{N}| ?[^\s\p{L}\p{N}]|\n+| +'
QUOTED = re.compile(r"'[^'\n]*'")

SYSTEM = (
  'Complete the assertion. Reason inside <reasoning> tags, then write what '
  '?? stands for inside <answer> tags.'
)
QUESTION = {
  'output': '{code}\nassert {entry}({args}) == ??',
  'input': '{code}\nassert {entry}(??) == {output}',
}
# Questions about the steps of a run. Their lines are numbered in the text.
SYSTEM_STEPS = (
  'Answer the question about the run of the program. Reason inside <reasoning> '
  'tags, then write the answer alone inside <answer> tags.'
)
SYSTEM_MIXED = (
  'Complete the assertion and answer the questions about the run. Reason '
  'inside <reasoning> tags. Then write inside <answer> tags, one a line: what '
  '?? stands for, then Q1: and its answer, Q2: and its answer, and so on.'
)
STEPS = {
  'coverage': 'Does line {line} run? Answer YES or NO.',
  'path': (
    'Which line runs right after line {line} runs for the {nth} time, in the '
    'same call? Answer its number, or -1 if the call ends there or line '
    '{line} does not run.'
  ),
  'state': (
    'What is {var} right after line {line} has run for the {nth} time? Answer '
    '`value; type`, or Nil if line {line} does not run.'
  ),
}


def messages(
  kind: str, code: str, entry: str, args: str, output: str, questions=()
):
  """The question as chat messages; `kind` is 'output' or 'input'.

  One short template for models of all sizes. The side that is asked for never
  appears in the text. The other kinds, 'coverage', 'path', 'state' and 'mixed',
  ask the `questions` {kind, line, occ, var}; 'mixed' asks for the output too.
  """
  if kind in STEPS or kind == 'mixed':
    if not questions:
      raise ValueError(f'kind {kind!r} asks `questions`; there are none')
    return _about_steps(kind, code, entry, args, questions)
  if kind not in QUESTION:
    known = sorted({*QUESTION, *STEPS, 'mixed'})
    raise ValueError(f'kind {kind!r} is not one of {known}')
  text = QUESTION[kind].format(
    code=code.strip(), entry=entry, args=args, output=output
  )
  return [
    {'role': 'system', 'content': SYSTEM},
    {'role': 'user', 'content': text},
  ]


def _about_steps(kind, code, entry, args, questions):
  lines = code.split('\n')
  wide = len(str(len(lines)))
  text = [f'{i:>{wide}} {line}'.rstrip() for i, line in enumerate(lines, 1)]
  call, asked = f'{entry}({args})', [step_question(q) for q in questions]
  if kind == 'mixed':
    text.append(f'assert {call} == ??')
    text += [f'Q{i}: {question}' for i, question in enumerate(asked, 1)]
  else:
    text += [f'The call is {call}.', *asked]
  return [
    {
      'role': 'system',
      'content': SYSTEM_MIXED if kind == 'mixed' else SYSTEM_STEPS,
    },
    {'role': 'user', 'content': '\n'.join(text)},
  ]


def step_question(question) -> str:
  """The text of a question about a step: {kind, line, occ, var}."""
  n = question['occ']
  last = (
    'th'
    if n % 100 in (11, 12, 13)
    else {1: 'st', 2: 'nd', 3: 'rd'}.get(n % 10, 'th')
  )
  template = STEPS[question['kind']]
  return template.format(
    line=question['line'], var=question['var'], nth=f'{n}{last}'
  )


def load(path):
  """The tokenizer of a Hugging Face directory.

  Read from tokenizer.json where there is one: AutoTokenizer would rebuild a
  Qwen2Tokenizer beside any `qwen2` config, another pre-tokenizer and decoder
  included. Without a pad token the end token pads; padding is always masked.
  Raises FileNotFoundError naming what the directory lacks.
  """
  path = pathlib.Path(path)
  if not (path / 'tokenizer_config.json').exists():
    raise FileNotFoundError(
      f'{path} holds no tokenizer (tokenizer_config.json is missing)'
    )
  if (path / 'tokenizer.json').exists():
    tok = transformers.PreTrainedTokenizerFast.from_pretrained(path)
  else:  # tokenizer.model, or vocab.json with merges.txt.
    tok = transformers.AutoTokenizer.from_pretrained(path)
  if tok.pad_token_id is None:
    tok.pad_token = tok.eos_token
  return tok


def check(tok, vocabulary: int, where):
  """Raises ValueError if a token's id has no row in the embedding.

  Rows without a token are fine: vocabularies are padded to round numbers.
  """
  last = max(tok.get_vocab().values())
  if last >= vocabulary:
    raise ValueError(
      f'{where} has {vocabulary} rows and the tokenizer {last + 1} ids '
      f'(the last is {tok.convert_ids_to_tokens(last)!r}): they are not of one '
      'model; give the tokenizer that the weights were trained with'
    )


def copy(source, target):
  """Copies the tokenizer's files between directories, byte for byte."""
  target = pathlib.Path(target)
  target.mkdir(parents=True, exist_ok=True)
  for name in FILES:
    if (file := pathlib.Path(source) / name).exists():
      shutil.copy(file, target / name)


def stop_ids(tok) -> tuple[int, ...]:
  """The tokens that end a completion: the end of a turn or of the text."""
  ids = {tok.eos_token_id, *map(tok.get_vocab().get, SPECIAL[::2])}
  return tuple(sorted(ids - {None}))


def encode_prompt(tok, prompt, *, thinking: bool | None = None) -> list[int]:
  """Tokens of the messages up to where the assistant begins to write.

  A text in their place is itself the prompt, with whatever the tokenizer puts
  before texts.

  `thinking` is the switch of Qwen3's template (False: an empty block of
  thoughts ends the prompt); None leaves it to the template, and templates
  without the switch ignore it.
  """
  if isinstance(prompt, str):
    return tok(prompt)['input_ids']
  return _encode(
    tok, _render(tok, prompt, thinking, add_generation_prompt=True)
  )


def encode_example(tok, conversation, *, thinking: bool | None = None):
  """(tokens, mask) of messages that end with the assistant's.

  Prompt and completion are tokenized apart, as they are while sampling, and the
  mask counts tokens: 0 for those of the prompt, 1 for what the assistant
  writes, the end-of-turn token included. Raises ValueError if the template does
  not append the answer to the prompt.
  """
  head = _render(tok, conversation[:-1], thinking, add_generation_prompt=True)
  whole = _render(tok, conversation, thinking)
  if conversation[-1]['role'] != 'assistant' or not whole.startswith(head):
    raise ValueError(
      'the chat template does not render the last message, which must be the '
      "assistant's, as a continuation of its generation prompt"
    )
  tail = whole[len(head) :].rstrip('\n')
  prompt, completion = _encode(tok, head), _encode(tok, tail)
  return prompt + completion, [0] * len(prompt) + [1] * len(completion)


def decode(tok, tokens_BT, length_B) -> list[str]:
  """The first `length_B` tokens of each row as text, special ones included."""
  rows = [t[:n] for t, n in zip(tokens_BT, length_B, strict=True)]
  return tok.batch_decode(rows, skip_special_tokens=False)


def token_spans(tok, tokens: list[int], spans) -> list[tuple[int, int]]:
  """(start, stop) of the tokens that write the characters of each span."""
  places = range(len(tokens) + 1)

  @functools.cache
  def written(n):  # whole characters
    text = tok.decode(tokens[:n], skip_special_tokens=False)
    return len(text.removesuffix('\N{REPLACEMENT CHARACTER}'))

  def place(character):
    return bisect.bisect_left(places, character, key=written)

  def first(character):
    n = place(character)
    return n - (written(n) > character)  # It begins within a token.

  return [(first(start), place(end)) for start, end in spans]


def train(texts, path, *, vocab_size: int):
  """Trains a byte-level BPE on `texts` and saves it in Hugging Face's format.

  It is a Qwen2Tokenizer: beside a `qwen2` config.json Transformers builds that
  class, whatever the files say, and its way of cutting text must be the one
  the model was trained with. Quoted strings are left out of the statistics, so
  that their letters stay single tokens: a small model can then see what a
  string method does. The directory appears whole or not at all.
  """
  qwen = transformers.Qwen2Tokenizer().backend_tokenizer
  bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
  bpe.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
    [
      qwen.pre_tokenizer[0],
      tokenizers.pre_tokenizers.Split(
        tokenizers.Regex(PIECES), behavior='isolated'
      ),
      qwen.pre_tokenizer[1],
    ]
  )
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=vocab_size,
    special_tokens=list(SPECIAL),
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  roles = ['system', 'user', 'assistant'] * len(texts)  # As often as a chat.
  plain = (QUOTED.sub("''", text) for text in [*texts, *roles])
  bpe.train_from_iterator(plain, trainer)
  trained = json.loads(bpe.to_str())['model']
  tok = transformers.Qwen2Tokenizer(
    vocab=trained['vocab'],
    merges=[tuple(pair) for pair in trained['merges']],
    eos_token='<|im_end|>',
    extra_special_tokens=['<|im_start|>'],
    chat_template=CHAT_TEMPLATE,
  )
  path = pathlib.Path(path)
  temporary = path.with_name(f'{path.name}.tmp')
  shutil.rmtree(temporary, ignore_errors=True)
  tok.save_pretrained(temporary)
  shutil.rmtree(path, ignore_errors=True)
  os.replace(temporary, path)
  return tok


def _render(tok, conversation, thinking, **kwargs) -> str:
  if not tok.chat_template:
    raise ValueError(
      f'{tok.name_or_path} has no chat template; put the chat_template.jinja '
      'that its model was trained with beside the tokenizer'
    )
  if thinking is not None:
    kwargs['enable_thinking'] = thinking
  return tok.apply_chat_template(conversation, tokenize=False, **kwargs)


def _encode(tok, text) -> list[int]:
  return tok(text, add_special_tokens=False)['input_ids']
