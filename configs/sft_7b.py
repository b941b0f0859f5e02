"""SFT of Qwen2.5-7B-Instruct on chains of reasoning, first stage of the paper.

  python -m crjax.train --config=configs/sft_7b.py --distributed

Hardware: 8 H200, a v6e-16 slice, or one H200; `crjax.plan` says what fits.
Hours: not measured. Expected: the paper (arXiv 2507.17548) reports that this
stage carries most of its gain over the base model on CRUXEval.
Recipe: AdamW 1e-5, cosine, 10 % warm-up, 2 epochs, rows of up to 4,096 tokens.
"""

from ml_collections import ConfigDict

from configs.shapes import qwen2_5


def get_config():
  c = ConfigDict()
  c.task = 'sft'
  c.seed = 0
  c.workdir = 'runs/sft_7b'

  c.data = 'runs/data_7b/sft_train.parquet'
  c.tokenizer = ''  # Empty: that of the model.
  c.thinking = False  # Qwen3: reasoning stands in our tags, not in <think>.
  c.model = 'Qwen/Qwen2.5-7B-Instruct'  # Or a directory, or gs://...
  c.shape = qwen2_5('7B')  # For `crjax.plan` alone: the model knows its own.
  half = ('bfloat16', 'bfloat16')
  c.topologies = {
    'h200': {'masters': 'split', 'moments': half, 'micro': 32, 'remat': 'mlp'},
    'h200x8': {'micro': 2, 'remat': 'dots'},
    'v6e:4x4': {'micro': 4},
  }
  c.how = {
    'model': 'hf download Qwen/Qwen2.5-7B-Instruct   (15 GB)',
    'tokenizer': '',
    'data': 'python -m data_pipeline.build --config=configs/data_7b.py',
  }

  c.epochs = 2
  c.batch = 64
  c.length = 4096
  c.packed = True  # Several examples a row, each for itself.
  c.micro = 8
  c.chunk = 2048  # Tokens whose logits there are at a time.
  # rank 0: every parameter is trained; else adapters on these matrices are.
  c.lora = {
    'rank': 0,
    'alpha': 32.0,
    'targets': ('q', 'k', 'v', 'o', 'gate', 'up', 'down'),
  }
  c.optimizer = 'adamw'
  c.lr = 1e-5
  c.schedule = 'cosine'
  c.warmup = 0.1
  c.betas = (0.9, 0.95)
  c.weight_decay = 0.01
  c.max_norm = 1.0
  c.moments = ('float32', 'float32')  # Either may be 'bfloat16' (adamw).
  c.masters = 'float32'  # 'split': bfloat16 and int16 halves, no cast copy.
  c.ema = 0.0  # Decay of a mean of the weights, which an export then takes.
  c.offload = False  # The optimizer's state in host memory between steps.

  c.mesh = (1, -1, 1)  # data, fsdp, tensor
  c.dtype = 'bfloat16'
  c.remat = 'full'
  c.save_every = 100
  c.keep = 2
  c.keep_best = ''  # A number of the log, such as '-loss'; '': none.
  c.watchdog = 3600  # Seconds without a step, then the run ends.
  c.samples_every = 0
  return c
