"""Serves a page on this machine, made anew when its runs have moved on."""

import http.server
import os

from crjax.report import build, gather

NAMES = ('127.0.0.1', 'localhost')
WATCHED = ('metrics.jsonl', 'report.json', 'manifest.json', 'samples')


def version(roots) -> str:
  """Changes whenever a run wrote something."""
  found = gather.find(roots)
  times = [
    os.stat(path / name).st_mtime_ns
    for some in found
    for path in some
    for name in WATCHED
    if (path / name).exists()
  ]
  return f'{len(times)}-{max(times)}'


def make_server(roots, port: int, most: int):
  """A server that listens on the loopback interface only."""
  made = {}

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      # Of a page elsewhere whose name was made to mean this machine, nothing.
      if self.headers.get('Host', '').rpartition(':')[0] not in NAMES:
        self.send_error(403)
        return
      try:
        self.reply()
      except (OSError, ValueError) as error:  # Such as a run that was removed.
        self.send_error(500, explain=str(error))

    def reply(self):
      now = version(roots)
      if self.path == '/version':
        self.answer('text/plain', now)
      elif self.path == '/':
        if now not in made:
          made.clear()
          made[now] = build.page(roots, live=now, most=most)
        self.answer('text/html', made[now])
      else:
        self.send_error(404)

    def answer(self, kind, text):
      data = text.encode()
      self.send_response(200)
      self.send_header('Content-Type', f'{kind}; charset=utf-8')
      self.send_header('Content-Length', str(len(data)))
      self.send_header('Cache-Control', 'no-store')
      self.end_headers()
      self.wfile.write(data)

    def log_message(self, *_):
      pass

  return http.server.ThreadingHTTPServer(('127.0.0.1', port), Handler)


def serve(roots, port: int, most: int):
  with make_server(roots, port, most) as server:
    print(f'report: http://127.0.0.1:{server.server_port}', flush=True)
    try:
      server.serve_forever()
    except KeyboardInterrupt:
      print('report: ended')
