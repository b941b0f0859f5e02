"""A headless Chromium over its debugging pipe; no package is needed."""

import base64
import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import time

NAMES = ('chromium', 'chromium-browser', 'google-chrome', 'chrome')


def find() -> str | None:
  """The path of a browser, of CRJAX_BROWSER or of the PATH."""
  named = os.environ.get('CRJAX_BROWSER')
  return named or next(filter(None, map(shutil.which, NAMES)), None)


class Page:
  """One tab; `errors` collects what goes wrong in it, `requests` its loads."""

  def __init__(self, process, out, into):
    self.process, self.out, self.into = process, out, into
    self.buffer, self.count = b'', 0
    self.errors, self.requests = [], []
    target = self.call('Target.createTarget', url='about:blank')['targetId']
    attached = self.call('Target.attachToTarget', targetId=target, flatten=True)
    self.session = attached['sessionId']
    for domain in ('Page', 'Runtime', 'Log', 'Network'):
      self.call(f'{domain}.enable')

  session = None

  def call(self, method, **params):
    """The result of a command; raises RuntimeError with the browser's words."""
    self.count += 1
    message = {'id': self.count, 'method': method, 'params': params}
    if self.session:
      message['sessionId'] = self.session
    os.write(self.into, json.dumps(message).encode() + b'\0')
    while True:
      reply = self.receive()
      if reply.get('id') == self.count:
        if 'error' in reply:
          raise RuntimeError(f'{method}: {reply["error"]["message"]}')
        return reply['result']

  def receive(self):
    while b'\0' not in self.buffer:
      part = os.read(self.out, 1 << 20)
      if not part:
        raise RuntimeError('the browser ended')
      self.buffer += part
    line, _, self.buffer = self.buffer.partition(b'\0')
    event = json.loads(line)
    method, params = event.get('method'), event.get('params', {})
    if method == 'Runtime.exceptionThrown':
      self.errors.append(params['exceptionDetails'].get('text', ''))
      told = params['exceptionDetails'].get('exception', {})
      self.errors[-1] += ' ' + told.get('description', '')
    elif method == 'Runtime.consoleAPICalled' and params['type'] == 'error':
      self.errors.append(str(params['args']))
    elif method == 'Log.entryAdded' and params['entry']['level'] == 'error':
      self.errors.append(params['entry']['text'])
    elif method == 'Network.requestWillBeSent':
      self.requests.append(params['request']['url'])
    return event

  def open(self, url, ready='document.body?.dataset.ready === "yes"'):
    self.call('Page.navigate', url=url)
    self.wait(ready)

  def wait(self, expression, seconds=60):
    end = time.monotonic() + seconds
    while not self.evaluate(f'Boolean({expression})'):
      if time.monotonic() > end:
        raise TimeoutError(f'{expression}; errors: {self.errors}')
      time.sleep(0.05)

  def evaluate(self, expression):
    """The value of a JavaScript expression, awaited if it is a promise."""
    found = self.call(
      'Runtime.evaluate',
      expression=expression,
      returnByValue=True,
      awaitPromise=True,
    )
    if 'exceptionDetails' in found:
      raise RuntimeError(str(found['exceptionDetails'])[:500])
    return found['result'].get('value')

  def screen(self, width, height, *, dark=False):
    self.call(
      'Emulation.setDeviceMetricsOverride',
      width=width,
      height=height,
      deviceScaleFactor=1,
      mobile=width < 700,
    )
    scheme = {'name': 'prefers-color-scheme', 'value': ['light', 'dark'][dark]}
    self.call('Emulation.setEmulatedMedia', features=[scheme])

  def shot(self, path):
    image = self.call('Page.captureScreenshot', format='png')['data']
    path.write_bytes(base64.b64decode(image))


@contextlib.contextmanager
def page(folder):
  """A Page of a browser of its own, with its profile in `folder`."""
  child_in, into = os.pipe()
  out, child_out = os.pipe()
  # Above 4, so that neither is overwritten before it is in its place.
  high_in, high_out = (
    fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (child_in, child_out)
  )
  command = [
    find(),
    '--headless=new',
    '--no-sandbox',
    '--disable-gpu',
    '--disable-dev-shm-usage',
    '--no-first-run',
    '--disable-background-networking',
    '--remote-debugging-pipe',
    f'--user-data-dir={folder}',
  ]
  process = subprocess.Popen(
    command,
    # The browser reads commands from descriptor 3 and answers on 4.
    preexec_fn=lambda: (os.dup2(high_in, 3), os.dup2(high_out, 4)),
    pass_fds=(3, 4),
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  for end in (child_in, child_out, high_in, high_out):
    os.close(end)
  try:
    yield Page(process, out, into)
  finally:
    process.kill()
    process.wait()
    os.close(into)
    os.close(out)
