"""GRPO of the smoke model with execution rewards, after configs/sft_smoke.py.

  python -m crjax.train --config=configs/grpo_smoke.py

Hardware: 2 CPU cores. Hours: 0.12. Starts from the exported SFT model.
`make smoke` runs it as one of its stages.
"""

from ml_collections import ConfigDict

from configs.grpo_presets import choose


def get_config(preset='crjax'):
  c = ConfigDict()
  c.task = 'grpo'
  c.seed = 0
  c.workdir = 'runs/smoke/grpo'

  c.data = 'runs/smoke/data/rl_train.parquet'
  c.tokenizer = ''  # Empty: that of the model.
  c.thinking = False  # Qwen3: reasoning stands in our tags, not in <think>.
  c.model = 'runs/smoke/sft/export'
  c.how = {
    'model': 'python -m crjax.train --config=configs/sft_smoke.py && '
    'python -m crjax.export --workdir=runs/smoke/sft '
    '--out=runs/smoke/sft/export',
    'tokenizer': '',
    'data': 'python -m data_pipeline.build --config=configs/data_smoke.py',
  }

  c.steps = 140
  c.questions = 32  # Sampled a step; of these
  c.groups = 16  # so many are trained on, those with an advantage first.
  c.canaries = 0  # Questions without an answer: a right one is an alarm.
  c.rounds = 1  # More are asked, so often, where groups lack a signal.
  c.pools = False  # Half solved questions are asked more; see curriculum.py.
  c.rollouts = 8
  c.prompt_length = 104
  c.completion_length = 112
  c.temperature = 1.0
  c.slots = 128  # Completions at a time.
  c.chunk = 16  # Tokens between two visits of the host.
  c.workers = 2
  c.sandbox_min_level = 2  # See python -m crjax.execution probe.

  c.preset = preset  # The estimator; see configs/grpo_presets.py.
  c.row = 384  # Tokens of a row: prompts, each with its completions.
  c.rows = 8  # Rows at a time: gradients are accumulated over them.
  # rank 0: every parameter is trained; else adapters on these matrices are.
  c.lora = {
    'rank': 0,
    'alpha': 32.0,
    'targets': ('q', 'k', 'v', 'o', 'gate', 'up', 'down'),
  }
  c.optimizer = 'adamw'
  c.lr = 3e-4
  c.schedule = 'linear'
  c.warmup = 5
  c.betas = (0.9, 0.95)
  c.weight_decay = 0.01
  c.max_norm = 1.0
  c.moments = ('float32', 'float32')  # Either may be 'bfloat16' (adamw).
  c.masters = 'float32'  # 'split': bfloat16 and int16 halves, no cast copy.

  c.mesh = (-1, 1, 1)  # data, fsdp, tensor
  c.dtype = 'float32'
  c.remat = 'none'
  c.save_every = 20
  c.keep = 2
  c.keep_best = 'reward'  # The save with the highest mean since the last.
  c.watchdog = 600  # Seconds without a step, then the run ends.
  c.samples_every = 1
  return choose(c, preset)
