"""SFT of a half-million-parameter Qwen3-shaped model from random weights.

  python -m crjax.train --config=configs/sft_smoke.py

Hardware: 2 CPU cores. Hours: 0.06. Needs the output of configs/data_smoke.py.
`make smoke` runs it as one of its stages.
"""

from ml_collections import ConfigDict


def get_config():
  c = ConfigDict()
  c.task = 'sft'
  c.seed = 0
  c.workdir = 'runs/smoke/sft'

  c.data = 'runs/smoke/data/sft_train.parquet'
  c.tokenizer = 'runs/smoke/data/tokenizer'
  c.thinking = False  # Qwen3: reasoning stands in our tags, not in <think>.
  c.model = ''  # Empty: random weights of this shape.
  c.shape = {
    'V': 512,
    'L': 3,
    'D': 128,
    'F': 256,
    'N': 4,
    'K': 2,
    'H': 32,
    'rope_theta': 1e4,
    'tied': True,
    'qkv_bias': False,
    'qk_norm': True,
  }
  build = 'python -m data_pipeline.build --config=configs/data_smoke.py'
  c.how = {'model': '', 'tokenizer': build, 'data': build}

  c.epochs = 2.1
  c.batch = 16
  c.length = 192
  c.packed = False  # One example a row.
  c.micro = 1
  c.chunk = 1024  # Tokens whose logits there are at a time.
  # rank 0: every parameter is trained; else adapters on these matrices are.
  c.lora = {
    'rank': 0,
    'alpha': 32.0,
    'targets': ('q', 'k', 'v', 'o', 'gate', 'up', 'down'),
  }
  c.optimizer = 'muon'
  c.lr = 5e-3
  c.schedule = 'cosine'
  c.warmup = 0.05
  c.betas = (0.9, 0.95)
  c.weight_decay = 0.1
  c.max_norm = 1.0
  c.moments = ('float32', 'float32')  # Either may be 'bfloat16' (adamw).
  c.masters = 'float32'  # 'split': bfloat16 and int16 halves, no cast copy.
  c.ema = 0.0  # Decay of a mean of the weights, which an export then takes.
  c.offload = False  # The optimizer's state in host memory between steps.

  c.mesh = (-1, 1, 1)  # data, fsdp, tensor
  c.dtype = 'float32'
  c.remat = 'none'
  c.save_every = 250
  c.keep = None  # All: the untrained model is one of them.
  c.keep_best = ''  # A number of the log, such as '-loss'; '': none.
  c.watchdog = 600  # Seconds without a step, then the run ends.
  c.samples_every = 0
  return c
