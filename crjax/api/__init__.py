"""OpenAI's chat and completions API over HTTP; knows no model and no device."""

from crjax.api.app import make
from crjax.api.desk import Desk
from crjax.api.served import Refused, Served

__all__ = ['Desk', 'Refused', 'Served', 'make']
