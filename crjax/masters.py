"""A float32 master weight as two halves: bfloat16 above, int16 below.

The high half is the weight rounded to bfloat16, hence what the compute reads
and a rollout samples with: there is no copy of the model to cast. The low half
is the rest, in units of the last place of float32. Together they are the weight
again, to one unit in that place where it lay halfway between two bfloat16 and
exactly otherwise, in 4 bytes.

Plain bfloat16 masters do not learn at the rates of RL: an Adam step of 1e-6
changes 2 % of them.
"""

import jax
import jax.numpy as jnp

from crjax.sharding import suffix


def split(params):
  """(high, low) of a tree; norm scales stay float32, whole, in the first."""
  high, low = {}, {}
  for name, x in params.items():
    if isinstance(x, dict):
      high[name], rest = split(x)
      if rest:
        low[name] = rest
    elif suffix(name):
      high[name], low[name] = halves(x)
    else:
      high[name] = x
  return high, low


def join(high, low):
  """The float32 tree of `split`."""
  whole = {}
  for name, x in high.items():
    if isinstance(x, dict):
      whole[name] = join(x, low.get(name, {}))
    else:
      whole[name] = joined(x, low[name]) if name in low else x
  return whole


def halves(x):
  """(bfloat16, int16) of a float32 array."""
  high = x.astype(jnp.bfloat16)
  low = _bits(x, jnp.int32) - _shifted(high)
  # From -2^15 to 2^15; the last only where rounding went up from halfway.
  return high, jnp.minimum(low, 2**15 - 1).astype(jnp.int16)


def joined(high, low):
  return _bits(_shifted(high) + low.astype(jnp.int32), jnp.float32)


def _shifted(high):
  """The bits of a bfloat16 where they are in a float32, as int32."""
  return _bits(high, jnp.int16).astype(jnp.int32) << 16


def _bits(x, dtype):
  return jax.lax.bitcast_convert_type(x, dtype)
