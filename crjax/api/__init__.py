"""OpenAI's chat and completions API over HTTP; knows no model and no device."""

from crjax.api.app import make
from crjax.api.asks import Served
from crjax.api.desk import Desk

__all__ = ['Desk', 'Served', 'make']
