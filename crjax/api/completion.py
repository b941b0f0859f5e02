"""The text of a completion while its tokens arrive.

Text is shown only once no later token can change it: half a UTF-8 character
and what may become a stop string are held back. All that was shown, joined, is
what decoding the tokens at once gives, cut before the first stop string.
"""

import functools
import re


class Completion:
  """One completion as it grows.

  ids, logps: its tokens so far, an end token included.
  pieces: the text that each token made certain; '' inside a character.
  text: `pieces` joined, without the stop string and what came after it.
  finish: None while it grows, then 'stop' or 'length'.
  """

  def __init__(self, tok, stops=(), least: int = 0):
    self.ids, self.logps, self.pieces = [], [], []
    self.text, self.finish = '', None
    self.tok, self.stops, self.least = tok, tuple(stops), least
    self.before, self.certain = 0, 0  # ids before `certain` are in `text`
    self.shown = 0  # characters that `take` has given
    self.taken = 0  # tokens of which it has

  def add(self, ids, logps, finish=None):
    """Takes new tokens, up to the one that completes a stop string."""
    for token, logp in zip(ids, logps, strict=True):
      if self.finish:
        return
      self.ids.append(token)
      self.logps.append(logp)
      self._grow(self._certain())
    if finish and not self.finish:
      tail = self._tail()
      if self.pieces:
        self.pieces[-1] += tail
      self._search(tail)
      self.finish = self.finish or finish

  def take(self) -> tuple[str, range]:
    """(text that may be shown, indices of the tokens) since the last call."""
    end = len(self.text) - (0 if self.finish else self._held())
    new = self.text[self.shown : end]
    tokens = range(self.taken, len(self.ids))
    self.shown, self.taken = max(end, self.shown), len(self.ids)
    return new, tokens

  def token(self, i: int) -> str:
    """The text that token i made certain, or its name where it has no text."""
    alone = self.tok.decode(self.ids[i : i + 1], skip_special_tokens=True)
    if self.pieces[i] or alone:
      return self.pieces[i]
    return self.tok.decode(self.ids[i : i + 1])

  def _grow(self, piece):
    self.pieces.append(piece)
    self._search(piece)

  def _search(self, piece):
    """Appends a piece; ends where it completes a stop string."""
    start = len(self.text)
    self.text += piece
    if not piece or len(self.ids) < self.least:
      return
    found = [
      at
      for stop in self.stops
      if (at := self.text.find(stop, max(0, start - len(stop) + 1))) >= 0
    ]
    if found:
      self.text, self.finish = self.text[: min(found)], 'stop'

  def _certain(self) -> str:
    """The text that the newest token completes, '' inside a character."""
    whole = self._decode(self.before)
    if whole.endswith('\ufffd') or self.ids[-1] in byte_ids(self.tok):
      return ''
    piece = whole[len(self._decode(self.before, self.certain)) :]
    if piece:
      self.before, self.certain = self.certain, len(self.ids)
    return piece

  def _tail(self) -> str:
    """What is left at the end: half a character is shown as U+FFFD."""
    known = self._decode(self.before, self.certain)
    return self._decode(self.before)[len(known) :]

  def _decode(self, start, end=None) -> str:
    return self.tok.decode(self.ids[start:end], skip_special_tokens=True)

  def _held(self) -> int:
    """Characters at the end of the text that may begin a stop string."""
    return max(
      (
        n
        for stop in self.stops
        for n in range(1, len(stop))
        if self.text.endswith(stop[:n])
      ),
      default=0,
    )


@functools.cache
def byte_ids(tok) -> frozenset[int]:
  """Tokens like <0xE2>, whose run is decoded as a whole, all or nothing.

  With what a run goes on behind, as if it was not there: special tokens.
  """
  byte = re.compile('<0x[0-9A-F]{2}>')
  ids = {i for t, i in tok.get_vocab().items() if byte.fullmatch(t)}
  return frozenset(ids.union(tok.all_special_ids) if ids else ())
