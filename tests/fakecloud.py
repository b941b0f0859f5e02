"""gcloud, ssh and scp of a cloud of directories, for the tests of launchers.

A machine is a directory that is its HOME; a command sent to it really runs,
there. The cloud's directory ($FAKE_CLOUD) holds:

  calls    one line a call, as JSON: what a launcher asked for
  state    of the queued resource; missing: there is none
  faults   lines "VERB FAULT": the next VERB meets FAULT, once a line
  m0, ...  the machines; a file `dead` in one: it does not answer
"""

import contextlib
import fcntl
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

CLOUD = pathlib.Path(os.environ.get('FAKE_CLOUD', ''))
LOST = 255  # What ssh ends with when a connection fails.
FAULTS = {
  'quota': (1, 'ERROR: RESOURCE_EXHAUSTED: Quota limit TPUV6EPerProject'),
  'lost': (LOST, 'Connection closed by remote host'),
}


def install(folder: pathlib.Path, cloud: pathlib.Path, machines: int):
  """The environment in which launchers find this cloud on PATH."""
  folder.mkdir()
  cloud.mkdir()
  (cloud / 'machines').write_text(str(machines))
  for name in ('gcloud', 'ssh', 'scp'):
    path = folder / name
    path.write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} {name} "$@"')
    path.chmod(0o755)
  return os.environ | {
    'PATH': f'{folder}:{os.environ["PATH"]}',
    'FAKE_CLOUD': str(cloud),
    'CRJAX_PYTHON': sys.executable,  # Machines install nothing.
    'CRJAX_POLL': '1',
    'CRJAX_PAUSE': '1',
    'CRJAX_GRACE': '20',
  }


def calls(cloud) -> list[list[str]]:
  path = cloud / 'calls'
  return [json.loads(x) for x in path.read_text().splitlines()]


def end(cloud):
  """Ends what still runs on the machines."""
  for machine in cloud.glob('m*/crjax/pid'):
    pid = int(machine.read_text())
    with contextlib.suppress(ProcessLookupError):
      os.killpg(pid, signal.SIGKILL)


def fault(verb):
  """Ends this call as a line of `faults` says, and takes the line away."""
  path = CLOUD / 'faults'
  if not path.exists():
    return
  with path.open('r+') as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    lines = file.read().splitlines()
    mine = [line for line in lines if line.split()[0] == verb]
    if not mine:
      return
    lines.remove(mine[0])
    file.seek(0)
    file.truncate()
    file.write('\n'.join(lines))
  code, message = FAULTS[mine[0].split()[1]]
  print(message, file=sys.stderr)
  sys.exit(code)


def on(machine: pathlib.Path, command: str) -> int:
  if (machine / 'dead').exists():
    print(f'ssh: connect to {machine.name}: timed out', file=sys.stderr)
    return LOST
  env = os.environ | {'HOME': str(machine)}
  return subprocess.run(
    ['bash', '-c', command], cwd=machine, env=env, check=False
  ).returncode


def into(machine: pathlib.Path, source: str, target: str) -> int:
  if (machine / 'dead').exists():
    return LOST
  # As scp does: the mode of a file that is there stays.
  shutil.copyfile(source, machine / target)
  return 0


def machines() -> list[pathlib.Path]:
  count = int((CLOUD / 'machines').read_text())
  return [CLOUD / f'm{i}' for i in range(count)]


def describe():
  path = CLOUD / 'state'
  if not path.exists():
    print('ERROR: NOT_FOUND: no such queued resource', file=sys.stderr)
    sys.exit(1)
  states = path.read_text().split()  # The next look sees the next one.
  print(states[0])
  if len(states) > 1:
    path.write_text(' '.join(states[1:]))


def delete():
  end(CLOUD)
  for machine in machines():
    shutil.rmtree(machine, ignore_errors=True)
  (CLOUD / 'state').unlink()


def create():
  if (CLOUD / 'state').exists():
    print('ERROR: ALREADY_EXISTS', file=sys.stderr)
    sys.exit(1)
  for machine in machines():
    machine.mkdir()
  waits = 'WAITING_FOR_RESOURCES PROVISIONING ACTIVE'
  (CLOUD / 'state').write_text(waits)


def gcloud(args):
  group = args.index('queued-resources') + 1
  verb, rest = args[group], args[group + 1 :]
  fault(verb)
  option = lambda name: next(
    (a.split('=', 1)[1] for a in rest if a.startswith(f'--{name}=')), None
  )
  if verb in ('create', 'describe', 'delete'):
    globals()[verb]()
    return 0
  where = option('worker')
  chosen = machines() if where == 'all' else [machines()[int(where)]]
  if verb == 'ssh':
    return max(on(machine, option('command')) for machine in chosen)
  source, target = rest[0], rest[1].split(':', 1)[1]
  return max(into(machine, source, target) for machine in chosen)


def ssh(args):
  fault('ssh')
  return on(CLOUD / args[-2].split('@')[-1], args[-1])


def scp(args):
  fault('scp')
  machine, target = args[-1].split(':', 1)
  return into(CLOUD / machine.split('@')[-1], args[-2], target)


if __name__ == '__main__':
  with (CLOUD / 'calls').open('a') as file:
    file.write(json.dumps(sys.argv[1:]) + '\n')
  sys.exit(
    {'gcloud': gcloud, 'ssh': ssh, 'scp': scp}[sys.argv[1]](sys.argv[2:])
  )
