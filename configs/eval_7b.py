"""Evaluation of a 7B model, or of any model behind a server, on a benchmark.

  python -m crjax.evaluate --config=configs/eval_7b.py --model=DIR \\
      --benchmark=cruxeval --prompt=cot --data=cruxeval.jsonl --out=DIR
  python -m crjax.evaluate --config=configs/eval_7b.py --model=NAME \\
      --endpoint=http://localhost:8000/v1 --benchmark=reval \\
      --prompt=zero_shot --data=labels.jsonl --out=DIR

Hardware: 8 chips of 16 GB or one of 80 GB; none with --endpoint. Hours: not
measured. Expected: what others report stands in no one harness; run the model
that training started from under this one, and compare the two.
Greedy, and 10 samples at T = 0.2, as CRUXEval asks. Base models: add --raw.
"""

from ml_collections import ConfigDict


def get_config():
  c = ConfigDict()
  c.seed = 0
  c.data = 'runs/data_7b/test.parquet'
  c.thinking = False  # Qwen3: reasoning stands in our tags, not in <think>.
  c.samples = 10  # a question
  c.temperature = 0.2
  c.batch = 128  # completions at a time
  c.prompt_length = 2048
  c.completion_length = 4096
  c.workers = 16
  c.sandbox_min_level = 2  # See python -m crjax.execution probe.
  c.mesh = (-1, 1, 1)  # data, fsdp, tensor
  c.dtype = 'bfloat16'
  return c
