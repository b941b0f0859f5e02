"""GRPO of the 7B SFT model with execution rewards, second stage of the paper.

  python -m crjax.train --config=configs/grpo_7b.py --distributed

Hardware: 8 H200, or a v5p-16 slice; `crjax.plan` says what fits.
Hours: not measured. Expected: the paper (arXiv 2507.17548) reports 27-40 % over
earlier methods with both stages.
Recipe: 128 of 192 questions x 16 rollouts, one update a batch, T = 1, group
mean and batch std, token mean over the step, clip 0.2/0.28, IcePop [0.5, 5],
no KL.
"""

from ml_collections import ConfigDict

from configs.grpo_presets import choose
from configs.shapes import qwen2_5


def get_config(preset='crjax'):
  c = ConfigDict()
  c.task = 'grpo'
  c.seed = 0
  c.workdir = 'runs/grpo_7b'

  c.data = 'runs/data_7b/rl_train.parquet'
  c.tokenizer = ''  # Empty: that of the model.
  c.thinking = False  # Qwen3: reasoning stands in our tags, not in <think>.
  c.model = 'runs/sft_7b/export'
  c.shape = qwen2_5('7B')  # For `crjax.plan` alone: the model knows its own.
  c.topologies = {'h200x8': {}, 'v5p:2x2x2': {}}
  c.how = {
    'model': 'python -m crjax.train --config=configs/sft_7b.py && '
    'python -m crjax.export --workdir=runs/sft_7b --out=runs/sft_7b/export',
    'tokenizer': '',
    'data': 'python -m data_pipeline.build --config=configs/data_7b.py',
  }

  c.steps = 200
  c.questions = 192  # Sampled a step; of these
  c.groups = 128  # so many are trained on, those with an advantage first.
  c.canaries = 64  # Questions without an answer: a right one is an alarm.
  c.rounds = 4  # More are asked, so often, where groups lack a signal.
  c.pools = True  # Half solved questions are asked more; see curriculum.py.
  c.rollouts = 16
  c.prompt_length = 2048
  c.completion_length = 4096
  c.temperature = 1.0
  c.slots = 512  # Completions at a time.
  c.chunk = 32  # Tokens between two visits of the host.
  c.workers = 16
  c.sandbox_min_level = 2  # See python -m crjax.execution probe.

  c.preset = preset  # The estimator; see configs/grpo_presets.py.
  c.row = 6144  # Tokens of a row: prompts, each with its completions.
  c.rows = 16  # Rows at a time: gradients are accumulated over them.
  # rank 0: every parameter is trained; else adapters on these matrices are.
  c.lora = {
    'rank': 0,
    'alpha': 32.0,
    'targets': ('q', 'k', 'v', 'o', 'gate', 'up', 'down'),
  }
  c.optimizer = 'adamw'
  c.lr = 1e-6
  c.schedule = 'constant'
  c.warmup = 10
  c.betas = (0.9, 0.95)
  c.weight_decay = 0.01
  c.max_norm = 1.0
  c.moments = ('float32', 'float32')  # Either may be 'bfloat16' (adamw).
  c.masters = 'float32'  # 'split': bfloat16 and int16 halves, no cast copy.

  c.mesh = (1, -1, 1)  # data, fsdp, tensor
  c.dtype = 'bfloat16'
  c.remat = 'full'
  c.save_every = 20
  c.keep = 2
  c.keep_best = 'reward'  # The save with the highest mean since the last.
  c.watchdog = 3600  # Seconds without a step, then the run ends.
  c.samples_every = 1
  return choose(c, preset)
