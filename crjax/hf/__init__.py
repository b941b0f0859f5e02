"""Hugging Face checkpoints in and out; every name that other modules use."""

from crjax.hf.adapter import read_adapter, save_adapter
from crjax.hf.config import read as config_from_hf
from crjax.hf.config import read_json
from crjax.hf.config import write as config_to_hf
from crjax.hf.load import Checkpoint, abstract, inspect, load, read_config
from crjax.hf.save import DTYPES, save
from crjax.hf.source import CARRIED, remember, remember_new
from crjax.hf.table import flatten, their_names, their_shapes

__all__ = [
  'CARRIED',
  'DTYPES',
  'Checkpoint',
  'abstract',
  'config_from_hf',
  'config_to_hf',
  'flatten',
  'inspect',
  'load',
  'read_adapter',
  'read_config',
  'read_json',
  'remember',
  'remember_new',
  'save',
  'save_adapter',
  'their_names',
  'their_shapes',
]
