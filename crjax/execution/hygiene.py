"""Whether a process is as it was before a program ran in it.

Standard library only; part of the worker.
"""

import builtins
import decimal
import gc
import operator
import sys
import types


def make_is_clean():
  """`is_clean(scope)`: whether another call may run in this process.

  Undoes the settings that programs touch; then builtins and the modules that
  the program holds must be as they were, object by object. Hygiene for
  programs that passed `screen`, not a security layer; to walk every module
  would copy the whole heap, 0.8 ms a call.
  """
  Module, is_, modules = types.ModuleType, operator.is_, sys.modules
  known = {
    id(m): (vars(m), list(vars(m)), list(vars(m).values()))
    for m in modules.values()
    if type(m) is Module and m is not sys  # Screened programs have no sys.
  }
  depth, digits = sys.getrecursionlimit(), sys.get_int_max_str_digits()
  context, count = decimal.getcontext().copy(), len(modules) + 1

  def same(module):
    found, names, objects = known[id(module)]
    return (
      len(found) == len(names)
      and all(map(is_, found, names))
      and all(map(is_, found.values(), objects))
    )

  def is_clean(scope):
    try:
      sys.setrecursionlimit(depth)
      decimal.setcontext(context.copy())
      return (
        sys.gettrace() is None
        and sys.getprofile() is None
        and gc.isenabled()
        and sys.get_int_max_str_digits() == digits
        and len(modules) == count
        and same(builtins)
        and all(same(v) for v in scope.values() if type(v) is Module)
      )
    except BaseException:  # Whatever the program broke, its process ends.
      return False

  return is_clean
