"""A bucket on this machine: what crjax's clients use of Google's JSON API.

TensorFlow and TensorStore speak to https://www.googleapis.com and
https://storage.googleapis.com and take no other address, but they do take a
proxy and a certificate authority from the environment. So this is a proxy that
answers for those hosts itself; the clients are the real ones, TLS included.
"""

import contextlib
import http.server
import json
import os
import re
import ssl
import subprocess
import threading
import urllib.parse

HOSTS = (
  'www.googleapis.com',
  'storage.googleapis.com',
  'oauth2.googleapis.com',
)


class Bucket(http.server.ThreadingHTTPServer):
  """Objects by name, and the requests that were made; `fail` may refuse one."""

  daemon_threads = True

  def __init__(self, certificate):
    self.objects, self.uploads, self.requests = {}, {}, []
    self.generation, self.lock = 0, threading.RLock()
    self.fail = lambda method, name: None  # (method, object) -> status
    self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    self.context.load_cert_chain(certificate)
    super().__init__(('127.0.0.1', 0), Handler)

  def put(self, name, data):
    with self.lock:
      self.generation += 1
      self.objects[name] = bytes(data), self.generation
      return self.about(name)

  def about(self, name):
    data, generation = self.objects[name]
    return {
      'name': name,
      'size': str(len(data)),
      'generation': str(generation),
      'metageneration': '1',
      'updated': '2026-01-01T00:00:00.000Z',
      'timeStorageClassUpdated': '2026-01-01T00:00:00.000Z',
    }

  def list(self, query):
    """Names with a prefix, those below a delimiter by their first part."""
    prefix, mark = query.get('prefix', ''), query.get('delimiter')
    first, last = query.get('startOffset', ''), query.get('endOffset')
    first = max(first, query.get('pageToken', ''))
    items, prefixes = [], set()
    with self.lock:
      for name in sorted(self.objects):
        if not name.startswith(prefix) or name < first:
          continue
        if last and name >= last:
          continue
        rest = name[len(prefix) :]
        if mark and mark in rest:
          prefixes.add(prefix + rest.split(mark)[0] + mark)
        else:
          items.append(self.about(name))
    most = int(query.get('maxResults', 1000))
    found = {'kind': 'storage#objects', 'items': items[:most]}
    if items[most:]:
      found['nextPageToken'] = items[most]['name']
    return found | ({'prefixes': sorted(prefixes)} if prefixes else {})


class Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'

  def log_message(self, *_):
    pass

  def do_CONNECT(self):
    self.send_response(200)
    self.end_headers()
    inner = self.server.context.wrap_socket(self.connection, server_side=True)
    with contextlib.suppress(OSError), inner:
      type(self)(inner, self.client_address, self.server)
    self.close_connection = True

  def do_GET(self):
    self._answer('GET')

  def do_POST(self):
    self._answer('POST')

  def do_PUT(self):
    self._answer('PUT')

  def do_DELETE(self):
    self._answer('DELETE')

  def _answer(self, method):
    body = self._body()
    url = urllib.parse.urlsplit(self.path)
    query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
    path = url.path
    host = self.headers.get('Host', '').split(':')[0]
    if host == 'storage.googleapis.com' and not re.match(
      '/(upload/)?storage/v1/', path
    ):
      name = urllib.parse.unquote(path.split('/', 2)[2])
      return self._object(method, name, {'alt': 'media'})
    if path.startswith('/upload/'):
      return self._upload(method, query, body)
    if path.endswith('/storageLayout'):  # Whether directories are objects, too.
      return self._reply(200, {'hierarchicalNamespace': {'enabled': False}})
    parts = re.fullmatch(r'/storage/v1/b/([^/]+)(?:/o(?:/(.*))?)?', path)
    if not parts:
      return self._reply(404, {'error': {'code': 404, 'message': path}})
    name = parts[2]
    if name and '/rewriteTo/b/' in name:
      return self._rewrite(*name.split('/rewriteTo/b/'))
    if name:
      return self._object(method, urllib.parse.unquote(name), query)
    if path.endswith('/o'):
      return self._reply(200, self.server.list(query))
    return self._reply(200, {'name': parts[1], 'location': 'US'})

  def _body(self):
    if 'chunked' in self.headers.get('Transfer-Encoding', ''):
      parts = []
      while size := int(self.rfile.readline(), 16):
        parts.append(self.rfile.read(size))
        self.rfile.readline()
      self.rfile.readline()
      return b''.join(parts)
    return self.rfile.read(int(self.headers.get('Content-Length') or 0))

  def _refused(self, method, name):
    self.server.requests.append((method, name))
    if status := self.server.fail(method, name):
      self._reply(status, {'error': {'code': status, 'message': 'refused'}})
    return status

  def _object(self, method, name, query):
    if self._refused(method, name):
      return None
    with self.server.lock:
      if name not in self.server.objects:
        return self._reply(404, {'error': {'code': 404, 'message': name}})
      data, generation = self.server.objects[name]
      if method == 'DELETE':
        del self.server.objects[name]
        return self._reply(204, b'')
      if query.get('alt') != 'media':
        return self._reply(200, self.server.about(name))
    known = {'x-goog-generation': str(generation)}
    if query.get('ifGenerationNotMatch') == str(generation):
      return self._reply(304, b'', known)
    if query.get('ifGenerationMatch', str(generation)) != str(generation):
      return self._reply(412, b'', known)
    span = re.fullmatch(r'bytes=(\d+)-(\d*)', self.headers.get('Range', ''))
    if not span:
      return self._reply(200, data, known)
    first = int(span[1])
    last = min(int(span[2] or len(data) - 1), len(data) - 1)
    if first > last:
      return self._reply(416, b'', known)
    known['Content-Range'] = f'bytes {first}-{last}/{len(data)}'
    return self._reply(206, data[first : last + 1], known)

  def _upload(self, method, query, body):
    server = self.server
    if method == 'PUT':
      return self._resume(query['upload_id'], body)
    name = query['name']
    if self._refused('POST', name):
      return None
    if query.get('uploadType') == 'resumable':
      with server.lock:
        key = str(len(server.uploads))
        server.uploads[key] = name, bytearray()
      place = f'https://www.googleapis.com/upload/x?upload_id={key}'
      return self._reply(200, b'', {'Location': place})
    with server.lock:
      there = server.objects.get(name, (b'', 0))[1]
      wanted = int(query.get('ifGenerationMatch', there))
      if wanted != there:
        error = {'code': 412, 'message': 'conditionNotMet'}
        return self._reply(412, {'error': error})
      return self._reply(200, server.put(name, body))

  def _resume(self, key, body):
    """A part of an upload; the last one makes the object appear."""
    name, data = self.server.uploads[key]
    data += body
    span = self.headers.get('Content-Range', 'bytes */*')
    total = span.rsplit('/', 1)[1]
    if total == '*' or len(data) < int(total):
      held = {'Range': f'bytes=0-{len(data) - 1}'} if data else {}
      return self._reply(308, b'', held)
    return self._reply(200, self.server.put(name, data))

  def _rewrite(self, source, to):
    source, to = map(urllib.parse.unquote, (source, to.split('/o/', 1)[1]))
    with self.server.lock:
      if source not in self.server.objects:
        return self._reply(404, {'error': {'code': 404, 'message': source}})
      about = self.server.put(to, self.server.objects[source][0])
    return self._reply(200, {'done': True, 'resource': about})

  def _reply(self, status, body, headers=None):
    if isinstance(body, dict):
      body, kind = json.dumps(body).encode(), 'application/json'
    else:
      kind = 'application/octet-stream'
    self.send_response(status)
    for name, value in (headers or {}).items():
      self.send_header(name, value)
    self.send_header('Content-Type', kind)
    if status not in (204, 304):
      self.send_header('Content-Length', str(len(body)))
    self.end_headers()
    if status not in (204, 304):
      self.wfile.write(body)


@contextlib.contextmanager
def serve(folder):
  """Yields (bucket, environment of processes that are to use it)."""
  certificate = folder / 'hosts.pem'
  names = ','.join(f'DNS:{host}' for host in HOSTS)
  subprocess.run(
    [
      *('openssl', 'req', '-x509', '-newkey', 'rsa:2048', '-nodes'),
      *('-subj', '/CN=fakegcs', '-addext', f'subjectAltName={names}'),
      *('-keyout', str(folder / 'key.pem'), '-out', str(folder / 'ca.pem')),
    ],
    check=True,
    capture_output=True,
  )
  parts = [(folder / name).read_text() for name in ('key.pem', 'ca.pem')]
  certificate.write_text(''.join(parts))
  with Bucket(certificate) as bucket:
    threading.Thread(target=bucket.serve_forever, daemon=True).start()
    ca, url = str(folder / 'ca.pem'), f'http://127.0.0.1:{bucket.server_port}'
    yield (
      bucket,
      os.environ
      | {name: url for name in ('HTTPS_PROXY', 'https_proxy')}
      | {name: '127.0.0.1' for name in ('NO_PROXY', 'no_proxy')}
      | {
        'CURL_CA_BUNDLE': ca,  # TensorFlow
        'TENSORSTORE_CA_BUNDLE': ca,
        'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'none',
        'NO_GCE_CHECK': 'true',
        # google-cloud-storage, which can be told, and comes without TLS.
        'STORAGE_EMULATOR_HOST': url,
      },
    )
    bucket.shutdown()
