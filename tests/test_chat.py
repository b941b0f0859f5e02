"""The client against real servers that fail in every way that servers do."""

import asyncio
import json
import time

import pytest

from data_pipeline.chat import Chat, Stopped, asked_wait, without_secrets
from data_pipeline.journal import Journal
from tests.chat_server import FAULTS, Server

SAMPLING = {'model': 'm', 'temperature': 0.6, 'top_p': 0.9, 'max_tokens': 64}
PASSING = [name for name in FAULTS if name not in ('', 'status 401')]


def echo(body):
  return f'you said {body["messages"][-1]["content"]}'


def question(text):
  return [{'role': 'user', 'content': str(text)}]


def ask(server, directory, texts, **knobs):
  """(answers or errors, the client) of the texts, all asked at once."""

  async def run():
    with Journal(directory) as journal:
      limits = {'concurrency': 4, 'seconds': 1.0, 'attempts': 4, 'hours': 1}
      settings = {'sampling': SAMPLING, 'key': 'CRJAX_TEST_KEY'}
      chat = Chat(journal, url=server.url, **settings, **(limits | knobs))
      asked = (chat.ask(question(text), 0) for text in texts)
      found = await asyncio.gather(*asked, return_exceptions=True)
      await chat.close()
      return found, chat

  return asyncio.run(run())


@pytest.mark.parametrize('fault', PASSING)
def test_what_passes_is_asked_again_and_counted_once(fault, tmp_path):
  """Each question meets the fault once; afterwards nothing is asked at all."""
  seen = set()

  def once(_, key):
    return '' if key in seen else seen.add(key) or fault

  with Server(echo, once) as server:
    found, chat = ask(server, tmp_path, range(4))
    assert [a.text for a in found] == [f'you said {i}' for i in range(4)]
    assert set(server.asked.values()) == {2}
    assert set(server.answered.values()) == {1}
    assert chat.failures.total() == 4
    assert (chat.counts['in'], chat.counts['out']) == (400, 40)
    again, chat = ask(server, tmp_path, range(4))
    assert again == found and server.asked.total() == 8
    assert chat.counts == {'kept': 4}


def test_a_server_is_given_the_time_it_asks_for(tmp_path):
  with Server(echo, lambda n, _: 'status 429' if n == 0 else '') as server:
    ask(server, tmp_path, range(3), concurrency=1)
    first, second, *_ = server.times
    assert second - first >= 1.0


def test_retry_after_may_be_a_date():
  assert asked_wait('2.5') == 2.5
  assert asked_wait('Wed, 21 Oct 2015 07:28:00 GMT') == 0
  assert asked_wait('Wed, 21 Oct 2099 07:28:00 GMT') > 1e8
  assert asked_wait('soon') == asked_wait('') == 0


def test_an_answer_that_was_cut_off_says_so(tmp_path):
  with Server(lambda _: ('so far', 'length')) as server:
    found, _ = ask(server, tmp_path, ['a'])
    assert found[0].finish == 'length'
    assert ask(server, tmp_path, ['a'])[0] == found


def test_a_model_that_only_thought_has_said_nothing(tmp_path):
  with Server(lambda _: (None, 'length')) as server:
    found, _ = ask(server, tmp_path, ['a'])
    assert (found[0].text, found[0].finish) == ('', 'length')


def test_a_refusal_stops_at_once_and_is_quoted(tmp_path):
  with Server(echo, lambda *_: 'status 401') as server:
    found, _ = ask(server, tmp_path, range(40))
    assert all(isinstance(e, Stopped) for e in found)
    assert 'no such key' in str(found[0])
    assert server.asked.total() <= 4  # Those that were under way.


def test_attempts_are_bounded_and_what_was_answered_stays(tmp_path):
  with Server(echo, lambda n, _: 'status 500' if n >= 5 else '') as server:
    found, _ = ask(server, tmp_path, range(30), attempts=3)
    answers = [a for a in found if not isinstance(a, Stopped)]
    assert len(answers) == 5 and '3 attempts' in str(found[-1])
    assert 'status 500' in str(found[-1])
    assert max(server.asked.values()) == 3
    server.fault = lambda *_: ''
    found, chat = ask(server, tmp_path, range(30))
    assert [a.text for a in found] == [f'you said {i}' for i in range(30)]
    assert chat.counts['kept'] == 5
    assert set(server.answered.values()) == {1}


def test_the_hours_of_a_run_are_bounded(tmp_path):
  with Server(echo, lambda *_: 'status 429') as server:
    began = time.monotonic()
    found, _ = ask(server, tmp_path, range(3), attempts=99, hours=1.5 / 3600)
    assert time.monotonic() - began < 4
    assert all('hours' in str(e) for e in found)


def test_a_server_that_dies_and_comes_back_loses_nothing(tmp_path):
  slow = lambda body: time.sleep(0.05) or echo(body)

  async def run(server):
    async def accident():
      while server.answered.total() < 10:
        await asyncio.sleep(0.01)
      await asyncio.to_thread(server.stop)
      await asyncio.sleep(1)
      server.start()

    with Journal(tmp_path) as journal:
      settings = {'sampling': SAMPLING, 'key': 'CRJAX_TEST_KEY'}
      limits = {'concurrency': 4, 'seconds': 5.0, 'attempts': 9, 'hours': 1}
      chat = Chat(journal, url=server.url, **settings, **limits)
      asked = (chat.ask(question(i), 0) for i in range(40))
      *found, _ = await asyncio.gather(*asked, accident())
      await chat.close()
      return found, chat

  with Server(slow) as server:
    found, chat = asyncio.run(run(server))
    assert [a.text for a in found] == [f'you said {i}' for i in range(40)]
    assert chat.counts['answers'] == 40 and chat.failures
    # Answered twice are at most those whose answers died with the server.
    assert server.answered.total() <= 40 + 4


def test_no_more_are_asked_at_a_time_than_allowed(tmp_path):
  with Server(lambda body: time.sleep(0.02) or echo(body)) as server:
    ask(server, tmp_path, range(40), concurrency=7)
    assert server.busiest == 7


def test_equal_questions_are_sent_once(tmp_path):
  with Server(echo) as server:
    found, chat = ask(server, tmp_path, ['a', 'b', 'a', 'a'])
    assert found[0] == found[2] == found[3] and server.asked.total() == 2
    assert chat.counts['answers'] == 2


def test_all_that_decides_an_answer_is_in_its_key(tmp_path):
  with Server(echo) as server, Journal(tmp_path) as journal:
    limits = {'concurrency': 4, 'seconds': 1.0, 'attempts': 4, 'hours': 1}
    make = lambda **more: Chat(
      journal, url=server.url, sampling=SAMPLING | more, key='', **limits
    )
    keys = [make(**more).key(question('a'), 0) for more in (
      {}, {'model': 'n'}, {'temperature': 0.7}, {'top_p': 1}, {'max_tokens': 9}
    )]  # fmt: skip
    keys += [make().key(question('a'), 1), make().key(question('b'), 0)]
    assert len(set(keys)) == len(keys)
    assert keys[0] == make().key(question('a'), 0)


def test_the_key_is_sent_and_not_kept(tmp_path, monkeypatch):
  with Server(echo) as server:
    ask(server, tmp_path, ['a'])
    monkeypatch.setenv('CRJAX_TEST_KEY', 'very-secret')
    ask(server, tmp_path, ['b'])
    sent = [{k.lower(): v for k, v in h.items()} for h in server.headers]
    assert 'authorization' not in sent[0]
    assert sent[1]['authorization'] == 'Bearer very-secret'
  for path in tmp_path.rglob('*.jsonl'):
    assert 'very-secret' not in path.read_text()
  url = 'https://me:very-secret@host:8/v1?key=very-secret'
  assert without_secrets(url) == 'https://host:8/v1'


def test_a_torn_last_line_is_no_answer_and_others_go_on(tmp_path):
  with Server(echo) as server:
    found, _ = ask(server, tmp_path, range(3))
    path = tmp_path / '0-of-1.jsonl'
    whole = path.read_bytes()
    for cut in (1, 20):
      path.write_bytes(whole[:-cut])
      again, chat = ask(server, tmp_path, range(3))
      assert again == found and chat.counts['kept'] == 2
      lines = path.read_text().splitlines()
      assert len({json.loads(line)['key'] for line in lines}) == 3 == len(lines)


def test_a_damaged_line_is_an_error_that_names_it(tmp_path):
  with Server(echo) as server:
    ask(server, tmp_path, range(3))
    path = tmp_path / '0-of-1.jsonl'
    first, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b''.join([first[:-5] + b'\n', *rest]))
    with pytest.raises(SystemExit, match=r'0-of-1\.jsonl, line 1'):
      ask(server, tmp_path, range(3))


def test_a_shard_has_one_process_and_reads_all_files(tmp_path):
  record = {'text': 't', 'finish': 'stop', 'tokens': [1, 2], 'endpoint': ''}
  with Journal(tmp_path, (1, 2)) as one:
    asyncio.run(one.keep({'key': 'k'} | record))
    with pytest.raises(SystemExit, match='another process'):
      Journal(tmp_path, (1, 2))
    with Journal(tmp_path, (0, 3)) as other:
      assert other.get('k') == {'key': 'k'} | record
      assert other.get('l') is None
