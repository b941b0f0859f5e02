"""Programs and answers that try to get a pass, or out of the sandbox.

Read by test_hostile. In every text NONCE stands for random letters that only
the expected value holds, unless a case hands them over; PORT for a port that
listens; VICTIM for a process of the same user; MARK for a name that no file may
get. A body is that of `def f(x)`; a case is (body or program, call, expected).
"""

# ruff: noqa: E501

KNOWN = "f('NONCE')"  # The attack knows the answer, and must not say it plainly
SECRET = "'NONCE'"
TRY_ALL = """import os
for fd in range(64):
  try: os.write(fd, {data})
  except OSError: pass
os._exit({status})"""

LYING_RESULTS = [
  ('class E:\n  def __eq__(self, o): return True\nreturn E()', 'f(1)', SECRET),
  (
    'class E(str):\n  def __eq__(self, o): return True\n'
    '  __hash__ = str.__hash__\nreturn E("a")',
    'f(1)',
    SECRET,
  ),
  (
    'class E(int):\n  def __eq__(self, o): return True\nreturn E(1)',
    'f(1)',
    '2',
  ),
  (
    'class E(list):\n  def __eq__(self, o): return True\nreturn E()',
    'f(1)',
    '[1]',
  ),
  (
    'class E(dict):\n  def __eq__(self, o): return True\nreturn E()',
    'f(1)',
    '{1: 2}',
  ),
  (
    'class E(float):\n  def __eq__(self, o): return True\nreturn E(0)',
    'f(1)',
    '2.0',
  ),
  (
    'class E(tuple):\n  def __eq__(self, o): return True\nreturn E()',
    'f(1)',
    '(1,)',
  ),
  (
    'class E(bytes):\n  def __eq__(self, o): return True\nreturn E()',
    'f(1)',
    "b'a'",
  ),
  (
    'class E:\n  def __eq__(self, o): return True\nreturn [E()]',
    'f(1)',
    "['NONCE']",
  ),
  (
    'class E:\n  def __eq__(self, o): return True\n  def __hash__(self): return 1\n'
    'return {E(): E()}',
    'f(1)',
    "{'NONCE': 1}",
  ),
  (
    'class E:\n  def __repr__(self): return "\'NONCE\'"\nreturn E()',
    'f(1)',
    SECRET,
  ),
  (
    'class E(str):\n  def __str__(self): return x\n  __repr__ = __str__\n'
    'return E("a")',
    KNOWN,
    SECRET,
  ),
  (
    'class M(type):\n  def __eq__(c, o): return True\n  __hash__ = type.__hash__\n'
    'class E(metaclass=M): pass\nreturn E()',
    'f(1)',
    SECRET,
  ),
  ('class E:\n  __class__ = str\nreturn E()', 'f(1)', SECRET),
  ('class E(str):\n  __class__ = str\nreturn E(x)', KNOWN, SECRET),
  ('from unittest import mock\nreturn mock.ANY', 'f(1)', SECRET),
  ('import enum\nclass E(str, enum.Enum): A = x\nreturn E.A', KNOWN, SECRET),
  ('import collections\nreturn collections.UserString(x)', KNOWN, SECRET),
  ('return float("nan")', 'f(1)', 'nan'),
  ('return [float("nan")] * 2', 'f(1)', '[nan, nan]'),
  ('return complex("nanj")', 'f(1)', 'nan'),
  ('def g():\n  yield x\nreturn g()', KNOWN, SECRET),
  (
    'class E(Exception):\n  def __eq__(self, o): return True\nraise E(x)',
    KNOWN,
    SECRET,
  ),
  ('async def g(): return x\nreturn g()', KNOWN, SECRET),
]

EARLY_EXIT = [
  *(
    (f'import os; os._exit({code})', 'f(1)', 'None') for code in range(90, 100)
  ),
  ('import os; os._exit(0)', 'f(1)', SECRET),
  ('import sys; sys.exit(0)', 'f(1)', SECRET),
  ('import sys; sys.exit()', 'f(1)', 'None'),
  ('raise SystemExit(x)', KNOWN, SECRET),
  ('raise KeyboardInterrupt', 'f(1)', 'None'),
  ('raise GeneratorExit', 'f(1)', 'None'),
  ('exit()', 'f(1)', 'None'),
  ('quit(0)', 'f(1)', 'None'),
  ('import os; os.abort()', 'f(1)', 'None'),
  ('import os, signal; os.kill(os.getpid(), signal.SIGKILL)', 'f(1)', 'None'),
  ('import os, signal; os.kill(os.getpid(), signal.SIGTERM)', 'f(1)', 'None'),
  ('import signal; signal.raise_signal(signal.SIGINT)', 'f(1)', 'None'),
  ('import os; os.execv("/bin/true", ["true"])', 'f(1)', 'None'),
  (
    'import os\nclass E:\n  def __del__(self): os._exit(0)\ne = E()\nreturn x',
    KNOWN,
    SECRET,
  ),
  (
    'import os\nos.close(0), os.close(1), os.close(2)\nos.closerange(3, 99)\n'
    'os._exit(0)',
    'f(1)',
    'None',
  ),
  (
    'import atexit, os\natexit.register(lambda: None)\nos._exit(0)',
    'f(1)',
    'None',
  ),
]

PATCHING = [
  (
    'import builtins\nbuiltins.type = lambda x: str\nclass A: pass\nreturn A()',
    'f(1)',
    SECRET,
  ),
  (
    'import builtins\nbuiltins.repr = lambda x: "\'NONCE\'"\nreturn 1',
    'f(1)',
    SECRET,
  ),
  (
    'import builtins\nbuiltins.sorted = builtins.map = None\nreturn {1, 2}',
    'f(1)',
    SECRET,
  ),
  (
    'import builtins\nbuiltins.compile = builtins.eval = builtins.exec = None\n'
    'return 1',
    'f(1)',
    SECRET,
  ),
  ('import os\nos._exit = os.write = lambda *a: 0\nreturn 1', 'f(1)', SECRET),
  (
    'import json, struct, marshal\njson.dumps = struct.pack = None\nreturn 1',
    'f(1)',
    SECRET,
  ),
  (
    'import sys\nfor m in list(sys.modules.values()):\n  for k in list(vars(m)):\n'
    '    if k in ("text", "texts", "equal", "check"): setattr(m, k, lambda *a: x)\n'
    'return 1',
    KNOWN,
    SECRET,
  ),
  (
    'import sys\nframe = sys._getframe()\nwhile frame:\n'
    '  for k in list(frame.f_globals):\n'
    '    if k in ("values", "call", "audit"): frame.f_globals[k] = None\n'
    '  frame = frame.f_back\nreturn 1',
    'f(1)',
    SECRET,
  ),
  (
    'import sys\ndef t(*a):\n  return t\nsys.settrace(t)\nsys.setprofile(t)\n'
    'return 1',
    'f(1)',
    SECRET,
  ),
  ('import sys\nsys.modules.clear()\nreturn 1', 'f(1)', SECRET),
  (
    'import sys, os\nsys.modules["child"] = sys.modules["values"] = os\nreturn 1',
    'f(1)',
    SECRET,
  ),
  (
    'import collections\ncollections.Counter.__eq__ = lambda *a: True\n'
    'return collections.Counter()',
    'f(1)',
    "Counter('a')",
  ),
  ('import math\nmath.isfinite = lambda x: 1 / 0\nreturn 1.0', 'f(1)', SECRET),
  (
    'import gc\ngc.disable()\nfor o in gc.get_objects():\n'
    '  if isinstance(o, dict) and "verdict" in o: o["verdict"] = "pass"\nreturn 1',
    'f(1)',
    '1',
  ),
  (
    'import gc\nfor o in gc.get_objects():\n  try:\n'
    '    if type(o) is list and len(o) == 1: o[0] = "R"\n  except Exception: pass\n'
    'return 1',
    'f(1)',
    SECRET,
  ),
  (
    'globals().update({k: None for k in list(globals())})\nreturn 1',
    'f(1)',
    SECRET,
  ),
  ('__builtins__["print"] = None\nreturn 1', 'f(1)', SECRET),
  ('f.__code__ = (lambda x: 1).__code__\nreturn 1', 'f(1)', SECRET),
]

FORGED_CHANNELS = [
  (TRY_ALL.format(data="b'V' + repr(x).encode()", status=0), KNOWN, SECRET),
  (TRY_ALL.format(data="b'pass'", status=0), KNOWN, SECRET),
  (TRY_ALL.format(data='b\'{"verdict": "pass"}\\n\'', status=0), KNOWN, SECRET),
  (
    TRY_ALL.format(
      data="(lambda t: len(t).to_bytes(4, 'little') + t)("
      "b'0' * 16 + b'V' + b'\\0'.join([b's' + repr(x).encode()] * 2"
      " + [repr(x).encode(), b'']))",
      status=0,
    ),
    KNOWN,
    SECRET,
  ),
  (
    TRY_ALL.format(
      data="(lambda t: len(t).to_bytes(4, 'little') + t)(b'0' * 16 + b'V') * 9",
      status=0,
    ),
    KNOWN,
    SECRET,
  ),
  (TRY_ALL.format(data="b'\\xff' * 4", status=0), KNOWN, SECRET),
  (TRY_ALL.format(data="b'\\0' * 4096", status=0), KNOWN, SECRET),
  (TRY_ALL.format(data="b'\\1' * (1 << 20)", status=1), KNOWN, SECRET),
  (
    'import os\nfor fd in range(3, 64):\n  try: os.write(fd, b"\\4\\0\\0\\0aaaa")\n'
    '  except OSError: pass\nreturn x',
    KNOWN,
    SECRET,
  ),
  (
    'import os\nfor fd in range(3, 64):\n  try: os.close(fd)\n  except OSError: pass\n'
    'return x',
    KNOWN,
    SECRET,
  ),
  ('import os\nr, w = os.pipe()\nos.dup2(w, 4)\nreturn x', KNOWN, SECRET),
  ('print(repr(x))\nprint("pass")\nimport os; os._exit(0)', KNOWN, SECRET),
  ('import sys\nsys.__stdout__.buffer.write(b"pass")', KNOWN, SECRET),
  (
    'import os\nos.write(1, repr(x).encode())\nos.write(2, b"pass")\nos._exit(0)',
    KNOWN,
    SECRET,
  ),
  ('import os\nos.read(3, 99), os.read(4, 99)\nreturn x', KNOWN, SECRET),
  ('return "1\\0s\'NONCE\'"', 'f(1)', SECRET),
]

READING_SECRETS = [
  (
    'import gc\nfor o in gc.get_objects():\n  if type(o) is str and len(o) == 24:\n'
    '    return o\nfor o in gc.get_referrers(str): pass',
    'f(1)',
    SECRET,
  ),
  (
    'import sys\nframe = sys._getframe()\nfound = []\nwhile frame:\n'
    '  found += [v for v in frame.f_locals.values() if type(v) is str]\n'
    '  frame = frame.f_back\nreturn max(found, key=len)',
    'f(1)',
    SECRET,
  ),
  (
    'try: 1 / 0\nexcept Exception as e: frame = e.__traceback__.tb_frame\n'
    'return str(frame.f_back.f_locals)',
    'f(1)',
    SECRET,
  ),
  ('import os\nreturn os.environ["CRJAX_SECRET"]', 'f(1)', SECRET),
  ('import os\nreturn dict(os.environ)', 'f(1)', "{'CRJAX_SECRET': 'NONCE'}"),
  ('import sys\nreturn " ".join(sys.argv)', 'f(1)', SECRET),
  ('import sys\nreturn sys.stdin.read()', 'f(1)', SECRET),
  ('return input()', 'f(1)', SECRET),
  *(
    (
      f'try: return open({path!r}).read()\nexcept OSError: return {value}',
      'f(1)',
      value,
    )
    for path, value in (
      ('/proc/self/environ', "'no'"),
      ('/proc/self/mem', "'no'"),
      ('/proc/1/cmdline', "'no'"),
      ('/etc/passwd', "'no'"),
      ('/proc/VICTIM/environ', "'no'"),
      ('SECRETFILE', "'no'"),
      ('/proc/self/fd/3', "'no'"),
    )
  ),
  ('import ctypes\nreturn ctypes.string_at(id(x), 99)', 'f(1)', SECRET),
  (
    'import inspect\nreturn str([f.frame.f_locals for f in inspect.stack()])',
    'f(1)',
    SECRET,
  ),
  (
    'import linecache\nreturn linecache.getline("SECRETFILE", 1)',
    'f(1)',
    SECRET,
  ),
  (
    'import os\nfor fd in range(9):\n  try:\n    if b"NON" in os.read(fd, 99): pass\n'
    '  except OSError: pass',
    'f(1)',
    SECRET,
  ),
  ('import sys\nreturn str(sys._current_frames())', 'f(1)', SECRET),
]

RESOURCES = [
  (
    'import os\nfor fd in range(64):\n  try: os.close(fd)\n'
    '  except OSError: pass\nwhile True: pass',
    'f(1)',
    '1',
  ),
  ('while True: pass', 'f(1)', '1'),
  (
    'import time\nwhile True:\n  try: time.sleep(9)\n  except BaseException: pass',
    'f(1)',
    '1',
  ),
  ('def g():\n  try: g()\n  finally: g()\ng()', 'f(1)', '1'),
  ('return [0] * 10**10', 'f(1)', '1'),
  ('a = []\nwhile True: a.append(a * 2)', 'f(1)', '1'),
  ('return "a" * 10**9', 'f(1)', '1'),
  ('return bytearray(1 << 40)', 'f(1)', '1'),
  ('return 10 ** 10 ** 8', 'f(1)', '1'),
  ('return str(7 ** 10 ** 6)', 'f(1)', '1'),
  ('while True: print("x" * 9999)', 'f(1)', '1'),
  ('return list(range(10**6))', 'f(1)', '1'),
  ('a = []\nfor _ in range(10**5): a = [a]\nreturn a', 'f(1)', '[]'),
  ('a = []\na.append(a)\nreturn a', 'f(1)', '[]'),
  ('a = [1]\nfor _ in range(50): a = [a, a]\nreturn a', 'f(1)', '[]'),
  (
    'import sys\nsys.setrecursionlimit(10**9)\ndef g(): return g()\ng()',
    'f(1)',
    '1',
  ),
  ('import re\nreturn re.match("(a+)+$", "a" * 64 + "b")', 'f(1)', 'None'),
  ('a = 1\nwhile True: a = a * a + 1', 'f(1)', '1'),
  (
    'try:\n  while True: pass\nexcept BaseException: return 1\nfinally: return 1',
    'f(1)',
    '1',
  ),
  ('import os\nwhile True: os.fork()', 'f(1)', '1'),
  ('import itertools\nreturn list(itertools.count())', 'f(1)', '1'),
  (
    'import signal\nfor s in range(1, 64):\n  try: signal.signal(s, signal.SIG_IGN)\n'
    '  except (OSError, ValueError): pass\nwhile True: pass',
    'f(1)',
    '1',
  ),
  ('exec("(" * 10**5)', 'f(1)', 'None'),
  (
    'class A:\n  def __del__(self):\n    while True: pass\na = A()\na.b = a\nreturn A',
    'f(1)',
    '1',
  ),
  (
    'import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))\n'
    'return len("a" * 10**9)',
    'f(1)',
    str(10**9),
  ),
]

FILES = [
  *(
    (
      f'import os\ntry: {question}\nexcept OSError: pass\nreturn 1',
      'f(1)',
      '1',
    )
    for question in (
      'os.stat("/etc")',
      'os.path.exists("/etc")',
      'os.access("/etc", 4)',
      'os.getcwd()',
      'os.readlink("/etc")',
      'os.statvfs("/")',
      'os.path.abspath("a")',
    )
  ),
  ('open("MARK", "w").write("x")\nreturn 1', 'f(1)', '1'),
  ('open("/tmp/MARK", "w").write("x")\nreturn 1', 'f(1)', '1'),
  ('try: open("/tmp/MARK", "w")\nexcept OSError: pass\nreturn 1', 'f(1)', '1'),
  ('import os\nos.mkdir("/tmp/MARK")\nreturn 1', 'f(1)', '1'),
  ('import os\nos.symlink("/etc", "/tmp/MARK")\nreturn 1', 'f(1)', '1'),
  ('import os\nos.link("SECRETFILE", "/tmp/MARK")\nreturn 1', 'f(1)', '1'),
  ('import os\nos.remove("SECRETFILE")\nreturn 1', 'f(1)', '1'),
  ('import os\nos.rename("SECRETFILE", "/tmp/MARK")\nreturn 1', 'f(1)', '1'),
  ('import os\nos.chmod("SECRETFILE", 0)\nreturn 1', 'f(1)', '1'),
  ('import os\nos.truncate("SECRETFILE", 0)\nreturn 1', 'f(1)', '1'),
  ('import os\nos.mkfifo("/tmp/MARK")\nreturn 1', 'f(1)', '1'),
  ('import os\nos.mknod("/tmp/MARK")\nreturn 1', 'f(1)', '1'),
  (
    'import os\ntry: return len(os.listdir("/")) * 0 + 1\nexcept OSError: return 1',
    'f(1)',
    '1',
  ),
  (
    'import os\ntry: os.chdir("/")\nexcept OSError: pass\nreturn 1',
    'f(1)',
    '1',
  ),
  ('import tempfile\ntempfile.mkdtemp()\nreturn 1', 'f(1)', '1'),
  ('import shutil\nshutil.rmtree("/tmp")\nreturn 1', 'f(1)', '1'),
  ('import pathlib\npathlib.Path("/tmp/MARK").touch()\nreturn 1', 'f(1)', '1'),
  ('import sqlite3\nsqlite3.connect("/tmp/MARK")\nreturn 1', 'f(1)', '1'),
  ('import io\nio.FileIO("/tmp/MARK", "w")\nreturn 1', 'f(1)', '1'),
  ('import os\nos.memfd_create("a")\nreturn 1', 'f(1)', '1'),
  ('import os\nos.utime("SECRETFILE", (0, 0))\nreturn 1', 'f(1)', '1'),
]

NETWORK = [
  (
    'import socket\nsocket.create_connection(("127.0.0.1", PORT))\nreturn 1',
    'f(1)',
    '1',
  ),
  (
    'import _socket\n_socket.socket().connect(("127.0.0.1", PORT))\nreturn 1',
    'f(1)',
    '1',
  ),
  (
    'import sys\ntry:\n  import socket\nexcept ImportError: pass\nreturn 1',
    'f(1)',
    '1',
  ),
  (
    'import urllib.request\nurllib.request.urlopen("http://127.0.0.1:PORT")\nreturn 1',
    'f(1)',
    '1',
  ),
  (
    'import http.client\nhttp.client.HTTPConnection("127.0.0.1", PORT).connect()\n'
    'return 1',
    'f(1)',
    '1',
  ),
  (
    'import asyncio\nasyncio.run(asyncio.open_connection("127.0.0.1", PORT))\nreturn 1',
    'f(1)',
    '1',
  ),
  (
    'import gc\nfor o in gc.get_objects():\n'
    '  if getattr(o, "__name__", "") in ("_socket", "socket"):\n'
    '    o.socket().connect(("127.0.0.1", PORT))\nreturn 1',
    'f(1)',
    '1',
  ),
  (
    'import os\nfor fd in range(3, 20):\n  try: os.sendfile(fd, 0, 0, 9)\n'
    '  except OSError: pass\nreturn 1',
    'f(1)',
    '1',
  ),
]

PROCESSES = [
  ('import os\nif os.fork() == 0:\n  while True: pass\nreturn 1', 'f(1)', '1'),
  ('import os\ntry: os.fork()\nexcept OSError: pass\nreturn 1', 'f(1)', '1'),
  ('import subprocess\nsubprocess.run(["true"])\nreturn 1', 'f(1)', '1'),
  ('import os\nos.system("touch /tmp/MARK")\nreturn 1', 'f(1)', '1'),
  ('import os\nos.popen("true").read()\nreturn 1', 'f(1)', '1'),
  (
    'import os\nos.posix_spawn("/bin/true", ["true"], {})\nreturn 1',
    'f(1)',
    '1',
  ),
  (
    'import multiprocessing\nmultiprocessing.Process(target=print).start()\nreturn 1',
    'f(1)',
    '1',
  ),
  (
    'import threading\nthreading.Thread(target=print).start()\nreturn 1',
    'f(1)',
    '1',
  ),
  (
    'import _thread\n_thread.start_new_thread(print, ())\nreturn 1',
    'f(1)',
    '1',
  ),
  ('import os\nos.kill(os.getppid(), 9)\nreturn 1', 'f(1)', '1'),
  ('import os\nos.kill(1, 9)\nreturn 1', 'f(1)', '1'),
  ('import os\nos.kill(-1, 9)\nreturn 1', 'f(1)', '1'),
  ('import os\nos.kill(VICTIM, 9)\nreturn 1', 'f(1)', '1'),
  ('import os\nos.killpg(0, 9)\nreturn 1', 'f(1)', '1'),
  ('import os\nos.setsid()\nreturn 1', 'f(1)', '1'),
  ('import os\nos.nice(5)\nreturn 1', 'f(1)', '1'),
  ('import os\nos.setuid(0)\nreturn 1', 'f(1)', '1'),
  ('import pty\npty.spawn("/bin/sh")\nreturn 1', 'f(1)', '1'),
]

# A way to the kernel past Python: ctypes without importing it.
RAW = """import sys
for c in object.__subclasses__():
  if c.__name__ == 'Program': lib = c
for m in list(sys.modules.values()):
  for v in list(vars(m).values()):
    if type(v).__name__ in ('CDLL', 'PyDLL'): libc = v
f_ = sys._getframe()
while f_:
  for v in list(f_.f_globals.values()):
    libc = getattr(v, 'LIBC', None) or locals().get('libc')
    if libc: break
  f_ = f_.f_back
"""
KERNEL = [
  *(
    (f'{RAW}libc.syscall({number}, {arguments})\nreturn 1', 'f(1)', '1')
    for number, arguments in (
      (41, '2, 1, 0'),
      (56, '17, 0, 0, 0, 0'),
      (57, '0'),
      (58, '0'),
      (59, 'b"/bin/true", 0, 0'),
      (62, 'VICTIM, 9'),
      (101, '16, VICTIM, 0, 0'),
      (155, 'b".", b"."'),
      (157, '4, 1, 0, 0, 0'),
      (165, '0, 0, 0, 0, 0'),
      (234, '1, 1, 9'),
      (272, '0x10000000'),
      (298, '0, 0, 0, 0, 0'),
      (310, 'VICTIM, 0, 0, 0, 0, 0'),
      (317, '1, 0, 0'),
      (319, 'b"a", 0'),
      (321, '0, 0, 0'),
      (322, '3, b"", 0, 0, 0x1000'),
      (323, '0'),
      (425, '8, 0'),
      (435, '0, 0'),
      (250, '0, 0, 0'),
      (0x40000000 + 41, '2, 1, 0'),
      (0x40000000 + 57, '0'),
    )
  ),
  (
    f'{RAW}a = libc.mmap(0, 4096, 7, 34, -1, 0)\nreturn 1 if a != -1 else 2',
    'f(1)',
    '1',
  ),
  (f'{RAW}libc.system(b"touch /tmp/MARK")\nreturn 1', 'f(1)', '1'),
  (f'{RAW}libc.open(b"/tmp/MARK", 0o102, 0o600)\nreturn 2', 'f(1)', '1'),
]

HOSTILE_CALLS = [
  ('return x', call, SECRET)
  for call in (
    "f('NONCE') or 1",
    "f(x) if 0 else 'NONCE'",
    "'NONCE'",
    "(lambda x: x)('NONCE')",
    "g('NONCE')",
    "print('NONCE')",
    "str('NONCE')",
    "f.__call__('NONCE')",
    "f(str('NONCE'))",
    "f('NON' + 'CE')",
    "f(*['NONCE'])",
    "f(**{'x': 'NONCE'})",
    "f(x='NONCE', x='NONCE')",
    "f(f('NONCE'))",
    "f(['NONCE'][0])",
    "f((lambda: 'NONCE')())",
    "f(f'NONCE')",
    "f(y := 'NONCE')",
    "f('NONCE'); import os",
    "f('NONCE')\nimport os",
    "f('NONCE'), 1",
    "f('NONCE'",
    "f('NONCE'))",
    "f(('NONCE')",
    '',
    ' ',
    'f',
    'f()()',
    'f(...)',
    "f(__import__('os').getcwd())",
    "f([c for c in 'NONCE'])",
    "f({**{}, 'a': 1})",
    "f('%s' % 'NONCE')",
    "f('NONCE'.lower())",
    "await f('NONCE')",
    "not f('NONCE')",
    "f('NONCE')[0:]",
    "[f('NONCE')]",
    "assert f('NONCE')",
    "import os\nf('NONCE')",
    "f(open('/etc/passwd').read())",
    'f(10**9**9)',
    "f('a' * 10**10)",
    'f([0] * 10**10)',
    'f(list(range(10**9)))',
    'f(bytes(10**9))',
    'f(' + '[' * 5000 + ']' * 5000 + ')',
    'f(' + '-' * 9000 + '1)',
    'f(' + '9' * 5000 + ')',
    "f('" + 'a' * 20000 + "')",
    'f(' + '(' * 90 + ')' * 90 + ')',
    'f(\x00)',
    'f("\ud800',
    '\ud800',
    'f(' + 'lambda:' * 2000 + '1)',
    'f({[]: 1})',
    'f({{}})',
    'f(frozenset(frozenset(frozenset([[]]))))',
    "f('\\",
    "f('" + "\\'" * 8000,
    'f(1)(2)',
    'f[1]',
    'f(x for x in [1])',
    'f(yield)',
    'f(' + '{' * 64,
    'f(float("NONCE"))',
    "f(int('9' * 9999))",
    "f(getattr(__builtins__, 'print'))",
    'f(set(' * 30 + ')' * 31,
    'f(list(list(list(range(10000)))), list(range(10000)))',
  )
]

HOSTILE_EXPECTED = [
  ("return 'right'", 'f(1)', expected)
  for expected in (
    "'wrong' or 'right'",
    'f(1)',
    'f(1) == f(1)',
    "str('right')",
    "'ri' + 'ght'",
    "'right' if 1 else 0",
    "(lambda: 'right')()",
    "'right'; import os",
    "'right'\nimport os",
    "'right'), ('a'",
    'True',
    '_',
    'x',
    'f',
    '...',
    '',
    ' ',
    '# right',
    'right',
    "f'right'",
    "'right'.lower()",
    "['right'][0]",
    "__import__('os')",
    "open('/etc/passwd').read()",
    'any',
    'ANY',
    '*',
    "('right',)",
    "'Right'",
    "'right '",
    "b'right'",
    "['right']",
    "{'right'}",
    'None',
    'nan',
    "not 'wrong'",
    "'right' == 'right'",
    "1 or 'right'",
    "'right' , ",
    "=='right'",
    "'right' is not None",
    'assert True',
    "('right' for _ in 'a')",
    '10**10**10',
    "'a' * 10**10",
    '[' * 9000,
    '-' * 9000 + '1',
    '9' * 9999,
    '\x00',
    '\ud800',
    "'" + 'a' * 20000 + "'",
    '(' * 80 + ')' * 80,
    '{[]: 1}',
    '{{}}',
    'list(range(10**9))',
    '1e999999',
    'lambda:' * 2000 + '1',
    "'" + "\\'" * 8000,
  )
]

PLAIN_WRONG = [
  ('return x + 1', 'f(1)', '3'),
  ('return [x]', 'f(1)', '[1, 1]'),
  ('return (x,)', 'f(1)', '[1]'),
  ('return str(x)', 'f(1)', '1'),
  ('return {x: 1}', 'f(1)', '{1: 2}'),
  ('return -x', 'f(5)', '5'),
  ('return {1, x}', 'f(2)', '{1, 3}'),
  ('return x / 3', 'f(1)', '0.3333'),
  ('return None', 'f(1)', 'False'),
  ("return ''", 'f(1)', 'None'),
  ('return b"a"', 'f(1)', "'a'"),
  ('return {}', 'f(1)', 'set()'),
  ('return range(x)', 'f(3)', '[0, 1, 2]'),
  ('raise ValueError(x)', "f('a')", "'a'"),
  ('return 10**400', 'f(1)', 'inf'),
  ('return x', 'f(2**3)', '8'),
  ('return 2**53', 'f(1)', str(2**53 + 1)),
  ('return 0.1 + 0.2', 'f(1)', '0.3'),
]

CASES = {
  'lying results': LYING_RESULTS,
  'early exit': EARLY_EXIT,
  'patching': PATCHING,
  'forged channels': FORGED_CHANNELS,
  'reading secrets': READING_SECRETS,
  'resources': RESOURCES,
  'files': FILES,
  'network': NETWORK,
  'processes': PROCESSES,
  'kernel': KERNEL,
  'hostile calls': HOSTILE_CALLS,
  'hostile expected': HOSTILE_EXPECTED,
  'plain wrong': PLAIN_WRONG,
}

# Whole programs that must pass, unlike anything above.
HONEST = [
  (
    'import os\ndef f(x):\n  os.environ["A"] = x\n  return os.environ["A"]',
    "f('b')",
    "'b'",
  ),
  (
    'import json, traceback\ndef f(x):\n  try: json.loads(x)\n'
    '  except ValueError: return traceback.format_exc()[:9]',
    "f('{')",
    "'Traceback'",
  ),
  ('def f(x):\n  return x + 1', 'f(1)', '2'),
  (
    'def f(x):\n  return x',
    "f('it\\'s \"q\" \\\\ \\u1234')",
    "'it\\'s \"q\" \\\\ \\u1234'",
  ),
  (
    'def f(*a, **k):\n  return a, k',
    'f(1, [2], z={3})',
    "((1, [2]), {'z': {3}})",
  ),
  ('def f(x, y=2):\n  return x * y', 'f(y=3, x=-4)', '-12'),
  ('def f(x):\n  return x', 'f(-1.5e-7)', '-1.5e-07'),
  ('def f(x):\n  return x', 'f(1+2j)', '(1+2j)'),
  ('def f(x):\n  return x', "f(b'\\x00\\xff')", "b'\\x00\\xff'"),
  ('def f(x):\n  return x', 'f(None)', 'None'),
  ('def f(x):\n  return x', 'f({1: [(2,), {3}]})', '{1: [(2,), {3}]}'),
  ('def f(x):\n  return not x', 'f(set())', 'True'),
  ('def f(x):\n  return x', "f(float('inf'))", "float('inf')"),
  ('def f(x):\n  return 10**x', 'f(5000)', '0x' + format(10**5000, 'x')),
  (
    'import math\ndef f(x):\n  return math.factorial(x)',
    'f(20)',
    '2432902008176640000',
  ),
  (
    'import re\ndef f(x):\n  return re.sub("[aeiou]", "", x)',
    "f('hello')",
    "'hll'",
  ),
  (
    'from collections import Counter\ndef f(x):\n  return Counter(x)',
    "f('aab')",
    "Counter({'a': 2, 'b': 1})",
  ),
  (
    'import collections\ndef f(x):\n  d = collections.defaultdict(list)\n'
    '  for i in x: d[i % 2].append(i)\n  return d',
    'f([1, 2, 3])',
    '{1: [1, 3], 0: [2]}',
  ),
  (
    'from collections import deque\ndef f(x):\n  return deque(x, 2)',
    'f([1, 2, 3])',
    'deque([2, 3])',
  ),
  (
    'import itertools, functools, operator\ndef f(x):\n'
    '  return list(itertools.accumulate(x, operator.mul))',
    'f([1, 2, 3])',
    '[1, 2, 6]',
  ),
  (
    'import heapq, bisect\ndef f(x):\n  heapq.heapify(x)\n'
    '  return heapq.heappop(x), bisect.bisect([1, 3], 2)',
    'f([3, 1])',
    '(1, 1)',
  ),
  (
    'import json, copy, string\ndef f(x):\n'
    '  return json.loads(json.dumps(copy.deepcopy(x)))',
    "f({'a': [1, None]})",
    "{'a': [1, None]}",
  ),
  (
    'from dataclasses import dataclass, asdict\n@dataclass\nclass P:\n  x: int\n'
    'def f(x):\n  return asdict(P(x))',
    'f(1)',
    "{'x': 1}",
  ),
  (
    'import datetime\ndef f(x):\n  return str(datetime.date(2020, 2, x))\n',
    'f(29)',
    "'2020-02-29'",
  ),
  (
    'from decimal import Decimal\nfrom fractions import Fraction\ndef f(x):\n'
    '  return str(Decimal(x) / 8), float(Fraction(x))',
    "f('1')",
    "('0.125', 1.0)",
  ),
  (
    'def f(x):\n  try:\n    return 1 // x\n  except ZeroDivisionError as e:\n'
    '    return str(e)',
    'f(0)',
    "'integer division or modulo by zero'",
  ),
  ('def f(n):\n  return n if n < 2 else f(n - 1) + f(n - 2)', 'f(15)', '610'),
  ('def f(n):\n  return 0 if n == 0 else 1 + f(n - 1)', 'f(900)', '900'),
  (
    'def f(n):\n  print("x" * n)\n  return sum(i * i for i in range(n))',
    'f(1000)',
    '332833500',
  ),
  (
    'class A:\n  def __init__(self, n): self.n = n\n  def __add__(self, o):\n'
    '    return A(self.n + o.n)\ndef f(x):\n  return (A(x) + A(x)).n',
    'f(2)',
    '4',
  ),
  (
    'import random\ndef f(x):\n  random.seed(x)\n  return len({random.random() '
    'for _ in range(9)})',
    'f(1)',
    '9',
  ),
  (
    'from typing import List, Optional\ndef f(x: List[int]) -> Optional[int]:\n'
    '  return max(x, default=None)',
    'f([])',
    'None',
  ),
  (
    'import hashlib, base64\ndef f(x):\n  return hashlib.md5(x).hexdigest(), '
    'base64.b64encode(x)',
    "f(b'a')",
    "('0cc175b9c0f1b6a831c399e269772661', b'YQ==')",
  ),
  (
    'import time, contextlib, textwrap, enum, statistics\ndef f(x):\n'
    '  return statistics.mean(x)',
    'f([1, 2])',
    '1.5',
  ),
  (
    'def f(x):\n  yield from x\nf = (lambda g: lambda x: list(g(x)))(f)',
    'f([1])',
    '[1]',
  ),
  (
    'def f(x):\n  return x.encode("utf-16-le"), "ß".upper(), x.encode("rot13")'
    '\nimport codecs\ndef f(x): return codecs.encode(x, "rot13")',
    "f('abc')",
    "'nop'",
  ),
  (
    'def f(x):\n  """Doc \'quotes\' (((."""\n  return {k: v for k, v in x.items()}',
    "f({'(': '['})",
    "{'(': '['}",
  ),
  (
    'import sys\ndef f(x):\n  sys.setrecursionlimit(5000)\n'
    '  g = lambda n: 0 if n == 0 else 1 + g(n - 1)\n  return g(x)',
    'f(3000)',
    '3000',
  ),
  ('def f(x):\n  return [0] * x', 'f(5000)', '[' + '0,' * 5000 + ']'),
]
