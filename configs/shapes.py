"""The shapes of models that the configs name; letters as in crjax/sharding.py.

A config keeps its shape so that `crjax.plan` needs no checkpoint; a run that
loads one checks that they agree.
"""

QWEN2_5 = {
  '1.5B': {'V': 151936, 'L': 28, 'D': 1536, 'F': 8960, 'N': 12, 'K': 2},
  '7B': {'V': 152064, 'L': 28, 'D': 3584, 'F': 18944, 'N': 28, 'K': 4},
  '14B': {'V': 152064, 'L': 48, 'D': 5120, 'F': 13824, 'N': 40, 'K': 8},
}
QWEN3 = {'8B': {'V': 151936, 'L': 36, 'D': 4096, 'F': 12288, 'N': 32, 'K': 8}}


def qwen2_5(size: str) -> dict:
  """Of Qwen2.5 and Qwen2.5-Coder alike."""
  return QWEN2_5[size] | {'H': 128, 'tied': size == '1.5B'}


def qwen3(size: str) -> dict:
  rest = {'H': 128, 'tied': False, 'qkv_bias': False, 'qk_norm': True}
  return QWEN3[size] | rest
