"""The seeds of programs: what builtins do, as a table with types.

One row is one use of a method, function or operator:

  type.method | holes | result | source

A hole is `name:type`; the first one is the receiver. A result of '-' makes a
statement that changes its receiver. Sources are such that they run for every
value of their types, so that nearly every program made of them runs.

Types: int, bool, float, str, bytes; ints, strs (lists), nested (lists of
ints); ituple, stuple; iset, sset; pairs (list of (str, int)); dict (str ->
int), groups (str -> ints). Literals only: char, sub (a short string), num (1 to
9), idx (0 to 3), few (2 or 3), width.
"""

import re
from typing import NamedTuple

TABLE = """
str.upper | a:str | str | {a}.upper()
str.lower | a:str | str | {a}.lower()
str.swapcase | a:str | str | {a}.swapcase()
str.capitalize | a:str | str | {a}.capitalize()
str.title | a:str | str | {a}.title()
str.casefold | a:str | str | {a}.casefold()
str.strip | a:str c:sub | str | {a}.strip({c})
str.lstrip | a:str c:sub | str | {a}.lstrip({c})
str.rstrip | a:str c:sub | str | {a}.rstrip({c})
str.replace | a:str c:sub s:sub | str | {a}.replace({c}, {s})
str.replace_count | a:str c:sub s:sub n:few | str | {a}.replace({c}, {s}, {n})
str.split | a:str c:sub | strs | {a}.split({c})
str.split_words | a:str | strs | {a}.split()
str.rsplit | a:str c:sub | strs | {a}.rsplit({c}, 1)
str.splitlines | a:strs | strs | '\\n'.join({a}).splitlines()
str.partition | a:str c:sub | stuple | {a}.partition({c})
str.rpartition | a:str c:sub | stuple | {a}.rpartition({c})
str.join | b:strs c:sub | str | {c}.join({b})
str.join_letters | a:str c:char | str | {c}.join({a})
str.find | a:str c:sub | int | {a}.find({c})
str.rfind | a:str c:sub | int | {a}.rfind({c})
str.index | a:str c:sub | int | {a}.index({c}) if {c} in {a} else -1
str.rindex | a:str c:sub | int | {a}.rindex({c}) if {c} in {a} else -1
str.count | a:str c:sub | int | {a}.count({c})
str.startswith | a:str c:sub | bool | {a}.startswith({c})
str.endswith | a:str c:sub | bool | {a}.endswith({c})
str.isdigit | a:str | bool | {a}.isdigit()
str.isalpha | a:str | bool | {a}.isalpha()
str.isalnum | a:str | bool | {a}.isalnum()
str.islower | a:str | bool | {a}.islower()
str.isupper | a:str | bool | {a}.isupper()
str.isspace | a:str i:idx | bool | {a}[{i}:].isspace()
str.istitle | a:str | bool | {a}.istitle()
str.isnumeric | a:str i:idx | bool | {a}[-{i}:].isnumeric()
str.isdecimal | a:str i:idx | bool | {a}[:{i}].isdecimal()
str.isidentifier | a:str | bool | {a}.isidentifier()
str.isascii | a:str | bool | {a}.isascii()
str.isprintable | a:str | bool | {a}.isprintable()
str.zfill | a:str n:width | str | {a}.zfill({n})
str.center | a:str n:width c:char | str | {a}.center({n}, {c})
str.ljust | a:str n:width c:char | str | {a}.ljust({n}, {c})
str.rjust | a:str n:width c:char | str | {a}.rjust({n}, {c})
str.removeprefix | a:str c:sub | str | {a}.removeprefix({c})
str.removesuffix | a:str c:sub | str | {a}.removesuffix({c})
str.translate | a:str c:char d:char | str | {a}.translate({{ord({c}): {d}}})
str.maketrans | a:str c:char d:char | str | {a}.translate(str.maketrans({c}, {d}))
str.expandtabs | a:str c:char n:few | str | {a}.replace({c}, '\\t').expandtabs({n})
str.format | a:str k:int | str | '{{}}-{{}}'.format({a}, {k})
str.percent | a:str k:int | str | '%s=%d' % ({a}, {k})
str.fstring | a:str k:int | str | {a} + str({k})
str.encode | a:str | bytes | {a}.encode()
str.reverse | a:str | str | {a}[::-1]
str.tail | a:str i:num | str | {a}[{i}:]
str.head | a:str i:num | str | {a}[:{i}]
str.slice | a:str i:idx n:width | str | {a}[{i}:{n}]
str.step | a:str n:few | str | {a}[::{n}]
str.last | a:str c:char | str | {a}[-1] if {a} else {c}
str.at | a:str k:int c:char | str | {a}[{k} % len({a})] if {a} else {c}
str.in | a:str c:sub | bool | {c} in {a}
str.concat | a:str b:str | str | {a} + {b}
str.repeat | a:str n:few | str | {a} * {n}
str.len | a:str | int | len({a})
str.ord | a:str k:num | int | ord({a}[0]) if {a} else {k}
str.chr | k:int | str | chr(97 + {k} % 26)
str.sorted | a:str | strs | sorted({a})
str.list | a:str | strs | list({a})
str.set | a:str | sset | set({a})
str.max | a:str c:char | str | max({a}, default={c})
str.min | a:str c:char | str | min({a}, default={c})
str.reversed | a:str | str | ''.join(reversed({a}))
str.letters | a:str | str | ''.join(c for c in {a} if c.isalpha())
str.digits | a:str | ints | [int(c) for c in {a} if c.isdecimal()]
str.compare | a:str b:str | bool | {a} < {b}
str.equal | a:str b:str | bool | {a} == {b}
bytes.decode | a:bytes | str | {a}.decode()
bytes.hex | a:bytes | str | {a}.hex()
bytes.list | a:bytes | ints | list({a})
bytes.upper | a:bytes | bytes | {a}.upper()
bytes.count | a:bytes | int | {a}.count(b'a')
list.append | a:ints k:int | - | {a}.append({k})
list.append_str | a:strs s:str | - | {a}.append({s})
list.append_row | a:nested b:ints | - | {a}.append({b}[:4])
list.append_pair | a:pairs s:str k:int | - | {a}.append(({s}, {k}))
list.insert | a:ints i:idx k:int | - | {a}.insert({i}, {k})
list.insert_str | a:strs i:idx s:str | - | {a}.insert({i}, {s})
list.extend | a:ints b:ints | - | {a}.extend({b}[:3])
list.extend_strs | a:strs b:strs | - | {a}.extend({b}[:3])
list.pop | a:ints | - | if {a}: {a}.pop()
list.pop_first | a:ints | - | if {a}: {a}.pop(0)
list.pop_value | a:ints k:num | int | {a}.pop() if {a} else {k}
list.remove | a:ints k:int | - | if {k} in {a}: {a}.remove({k})
list.remove_str | a:strs s:char | - | if {s} in {a}: {a}.remove({s})
list.reverse | a:ints | - | {a}.reverse()
list.reverse_strs | a:strs | - | {a}.reverse()
list.sort | a:ints | - | {a}.sort()
list.sort_reverse | a:ints | - | {a}.sort(reverse=True)
list.sort_key | a:strs | - | {a}.sort(key=len)
list.sort_pairs | a:pairs | - | {a}.sort(key=lambda p: p[1])
list.del | a:ints n:few | - | del {a}[::{n}]
list.set_slice | a:ints n:few k:int | - | {a}[:{n}] = [{k}]
list.set_item | a:ints k:int | - | if {a}: {a}[-1] = {k}
list.clear | a:ints n:width | - | if len({a}) > {n}: {a}.clear()
list.copy | a:ints | ints | {a}.copy()
list.index | a:ints k:int | int | {a}.index({k}) if {k} in {a} else -1
list.count | a:ints k:int | int | {a}.count({k})
list.count_str | a:strs s:char | int | {a}.count({s})
list.slice | a:ints i:num | ints | {a}[{i}:]
list.head | a:strs i:num | strs | {a}[:{i}]
list.reverse_slice | a:ints | ints | {a}[::-1]
list.step | a:ints n:few | ints | {a}[::{n}]
list.at | a:ints k:int d:num | int | {a}[{k} % len({a})] if {a} else {d}
list.last | a:ints k:num | int | {a}[-1] if {a} else {k}
list.first_str | a:strs c:sub | str | {a}[0] if {a} else {c}
list.concat | a:ints b:ints | ints | {a} + {b}
list.concat_strs | a:strs b:strs | strs | {a} + {b}
list.repeat | a:ints n:few | ints | {a} * {n}
list.in | a:ints k:int | bool | {k} in {a}
list.not_in | a:strs s:char | bool | {s} not in {a}
list.len | a:ints | int | len({a})
list.len_strs | a:strs | int | len({a})
list.len_nested | a:nested | int | len({a})
list.compare | a:ints b:ints | bool | {a} < {b}
list.map_add | a:ints k:num | ints | [v + {k} for v in {a}]
list.map_mul | a:ints n:few | ints | [v * {n} for v in {a}]
list.map_mod | a:ints k:num | ints | [v % {k} for v in {a}]
list.filter_gt | a:ints k:int | ints | [v for v in {a} if v > {k}]
list.filter_even | a:ints n:few | ints | [v for v in {a} if v % {n} == 0]
list.map_upper | a:strs | strs | [w.upper() for w in {a}]
list.map_head | a:strs i:few | strs | [w[:{i}] for w in {a}]
list.filter_len | a:strs i:few | strs | [w for w in {a} if len(w) > {i}]
list.flatten | a:nested | ints | [v for row in {a} for v in row]
list.row_sums | a:nested | ints | [sum(row) for row in {a}]
list.sort_rows | a:nested | nested | sorted({a}, key=len)
list.chunks | a:ints n:few | nested | [{a}[i:i + {n}] for i in range(0, len({a}), {n})]
list.firsts | a:pairs | strs | [p[0] for p in {a}]
list.seconds | a:pairs | ints | [n for _, n in {a}]
dict.get | a:dict s:char k:num | int | {a}.get({s}, {k})
dict.get_str | a:dict s:str k:num | int | {a}.get({s}, {k})
dict.keys | a:dict | strs | list({a}.keys())
dict.values | a:dict | ints | list({a}.values())
dict.items | a:dict | pairs | list({a}.items())
dict.items_sorted | a:dict | pairs | sorted({a}.items(), key=lambda p: (p[1], p[0]))
dict.set_item | a:dict s:str k:int | - | {a}[{s}] = {k}
dict.setdefault | a:dict s:str k:int | - | {a}.setdefault({s}, {k})
dict.pop | a:dict s:char k:num | int | {a}.pop({s}, {k})
dict.popitem | a:dict | - | if {a}: {a}.popitem()
dict.update | a:dict b:dict | - | {a}.update({b})
dict.update_key | a:dict s:char k:int | - | {a}.update({{{s}: {k}}})
dict.del | a:dict s:char | - | if {s} in {a}: del {a}[{s}]
dict.clear | a:dict n:few | - | if len({a}) < {n}: {a}.clear()
dict.copy | a:dict | dict | {a}.copy()
dict.fromkeys | a:strs k:num | dict | dict.fromkeys({a}, {k})
dict.fromkeys_str | a:str k:int | dict | dict.fromkeys({a}, {k})
dict.zip | a:strs b:ints | dict | dict(zip({a}, {b}))
dict.of_pairs | a:pairs | dict | dict({a})
dict.merge | a:dict b:dict | dict | {a} | {b}
dict.in | a:dict s:str | bool | {s} in {a}
dict.len | a:dict | int | len({a})
dict.sorted | a:dict | strs | sorted({a})
dict.max_key | a:dict c:char | str | max({a}, key={a}.get) if {a} else {c}
dict.sum | a:dict | int | sum({a}.values())
dict.filter | a:dict k:num | dict | {{q: n for q, n in {a}.items() if n > {k}}}
dict.map | a:dict k:num | dict | {{q: n + {k} for q, n in {a}.items()}}
dict.lengths | a:strs | dict | {{w: len(w) for w in {a}}}
dict.counts | a:str | dict | {{c: {a}.count(c) for c in {a}}}
dict.group_get | a:groups s:char | ints | {a}.get({s}, [])
dict.group_add | a:groups s:str k:int | - | {a}.setdefault({s}, []).append({k})
dict.group_sizes | a:groups | dict | {{q: len(g) for q, g in {a}.items()}}
dict.group_keys | a:groups | strs | sorted({a})
set.add | a:iset k:int | - | {a}.add({k})
set.add_str | a:sset s:str | - | {a}.add({s})
set.discard | a:iset k:int | - | {a}.discard({k})
set.remove | a:sset s:char | - | if {s} in {a}: {a}.remove({s})
set.update | a:iset b:ints | - | {a}.update({b})
set.intersection_update | a:iset b:ints | - | {a}.intersection_update({b})
set.difference_update | a:iset b:ints | - | {a}.difference_update({b})
set.symmetric_difference_update | a:iset b:ints | - | {a}.symmetric_difference_update({b})
set.clear | a:iset n:width | - | if len({a}) > {n}: {a}.clear()
set.union | a:iset b:ints | iset | {a}.union({b})
set.intersection | a:sset b:strs | sset | {a}.intersection({b})
set.difference | a:iset b:ints | iset | {a}.difference({b})
set.symmetric_difference | a:iset b:ints | iset | {a}.symmetric_difference({b})
set.issubset | a:iset b:ints | bool | {a}.issubset({b})
set.issuperset | a:iset b:ints | bool | {a}.issuperset({b})
set.isdisjoint | a:sset b:strs | bool | {a}.isdisjoint({b})
set.copy | a:iset | iset | {a}.copy()
set.or | a:iset b:iset | iset | {a} | {b}
set.and | a:sset b:sset | sset | {a} & {b}
set.minus | a:iset b:iset | iset | {a} - {b}
set.xor | a:sset b:sset | sset | {a} ^ {b}
set.len | a:iset | int | len({a})
set.in | a:sset s:char | bool | {s} in {a}
set.sorted | a:iset | ints | sorted({a})
set.sorted_strs | a:sset | strs | sorted({a})
set.of_list | a:ints | iset | set({a})
set.of_strs | a:strs | sset | set({a})
set.comprehension | a:ints k:num | iset | {{v % {k} for v in {a}}}
set.max | a:iset k:num | int | max({a}, default={k})
tuple.count | a:ituple k:int | int | {a}.count({k})
tuple.index | a:ituple k:int | int | {a}.index({k}) if {k} in {a} else -1
tuple.slice | a:ituple i:few | ituple | {a}[{i}:]
tuple.concat | a:ituple b:ituple | ituple | {a} + {b}
tuple.add_one | a:ituple k:int | ituple | {a} + ({k},)
tuple.repeat | a:ituple n:few | ituple | {a} * {n}
tuple.len | a:ituple | int | len({a})
tuple.in | a:ituple k:int | bool | {k} in {a}
tuple.of_list | a:ints | ituple | tuple({a})
tuple.of_strs | a:strs | stuple | tuple({a})
tuple.list | a:ituple | ints | list({a})
tuple.list_strs | a:stuple | strs | list({a})
tuple.sorted | a:ituple | ints | sorted({a})
tuple.reversed | a:ituple | ituple | tuple(reversed({a}))
tuple.sum | a:ituple | int | sum({a})
tuple.max | a:ituple k:num | int | max({a}, default={k})
tuple.join | a:stuple | str | ''.join({a})
tuple.unpack | a:ints b:ituple | ituple | (*{a}, *{b})
int.abs | a:int | int | abs({a})
int.divmod | a:int k:num | ituple | divmod({a}, {k})
int.pow | a:int n:few | int | {a} ** {n}
int.pow_mod | a:int n:few k:width | int | pow({a}, {n}, {k})
int.add | a:int b:int | int | {a} + {b}
int.sub | a:int b:int | int | {a} - {b}
int.mul | a:int k:num | int | {a} * {k}
int.floordiv | a:int k:num | int | {a} // {k}
int.mod | a:int k:num | int | {a} % {k}
int.max | a:int b:int | int | max({a}, {b})
int.min | a:int b:int | int | min({a}, {b})
int.bit_length | a:int | int | {a}.bit_length()
int.bit_count | a:int | int | {a}.bit_count()
int.and | a:int k:num | int | {a} & {k}
int.or | a:int k:num | int | {a} | {k}
int.xor | a:int k:num | int | {a} ^ {k}
int.shift | a:int n:few | int | {a} << {n}
int.str | a:int | str | str({a})
int.bin | a:int | str | bin({a})
int.hex | a:int | str | hex({a})
int.oct | a:int | str | oct({a})
int.of_str | a:str k:num | int | int({a}) if {a}.isdecimal() else {k}
int.even | a:int n:few | bool | {a} % {n} == 0
int.less | a:int b:int | bool | {a} < {b}
int.equal | a:int k:num | bool | {a} == {k}
int.between | a:int i:idx n:width | bool | {i} <= {a} < {n}
int.digits | a:int | ints | [int(c) for c in str(abs({a}))]
int.choose | a:int b:int c:bool | int | {a} if {c} else {b}
bool.and | a:bool b:bool | bool | {a} and {b}
bool.or | a:bool b:bool | bool | {a} or {b}
bool.not | a:bool | bool | not {a}
bool.int | a:bool | int | int({a})
float.div | a:int k:num | float | {a} / {k}
float.round | a:float | int | round({a})
float.int | a:float | int | int({a})
float.is_integer | a:float | bool | {a}.is_integer()
float.add | a:float k:num | float | {a} + {k}
float.less | a:float k:num | bool | {a} < {k}
iter.range | a:int | ints | list(range(abs({a}) % 9))
iter.range_step | a:int k:num n:few | ints | list(range({k}, {k} + abs({a}) % 15, {n}))
iter.enumerate | a:strs | pairs | [(w, i) for i, w in enumerate({a})]
iter.enumerate_start | a:ints k:num | ints | [i * v for i, v in enumerate({a}, {k})]
iter.zip | a:strs b:ints | pairs | list(zip({a}, {b}))
iter.zip_ints | a:ints b:ints | ints | [p + q for p, q in zip({a}, {b})]
iter.zip_shift | a:ints | ints | [q - p for p, q in zip({a}, {a}[1:])]
iter.map_str | a:ints | strs | list(map(str, {a}))
iter.map_len | a:strs | ints | list(map(len, {a}))
iter.map_abs | a:ints | ints | list(map(abs, {a}))
iter.filter_none | a:ints | ints | list(filter(None, {a}))
iter.filter_alpha | a:strs | strs | list(filter(str.isalpha, {a}))
iter.any | a:ints k:int | bool | any(v > {k} for v in {a})
iter.all | a:strs | bool | all(w.islower() for w in {a})
iter.sum | a:ints | int | sum({a})
iter.sum_if | a:ints n:few | int | sum(v for v in {a} if v % {n})
iter.count_if | a:strs c:char | int | sum({c} in w for w in {a})
iter.max | a:ints k:num | int | max({a}, default={k})
iter.min | a:ints k:num | int | min({a}, default={k})
iter.max_key | a:strs c:sub | str | max({a}, key=len, default={c})
iter.sorted | a:ints | ints | sorted({a})
iter.sorted_reverse | a:ints | ints | sorted({a}, reverse=True)
iter.sorted_key | a:strs | strs | sorted({a}, key=lambda w: (len(w), w))
iter.sorted_abs | a:ints k:num | ints | sorted({a}, key=lambda v: v % {k})
iter.reversed | a:ints | ints | list(reversed({a}))
iter.next | a:ints k:int | int | next((v for v in {a} if v > {k}), -1)
"""  # noqa: E501 (a row is a line)


class Entry(NamedTuple):
  """One row; `holes` maps names to types in the order of the table."""

  owner: str
  method: str
  holes: dict
  result: str
  source: str

  @property
  def name(self):
    return f'{self.owner}.{self.method}'

  @property
  def receiver(self):
    """The type of the first hole."""
    return next(iter(self.holes.values()), None)

  def repeats(self, hole) -> bool:
    """Whether the source has a hole twice: what fills it must be short."""
    return self.source.count(f'{{{hole}}}') > 1


def _read(line) -> Entry:
  name, holes, result, source = re.split(r' \| ', line.strip(), maxsplit=3)
  pairs = dict(hole.split(':') for hole in holes.split())
  return Entry(*name.split('.'), pairs, result, source.replace('\\\\', '\\'))


ENTRIES = tuple(_read(line) for line in TABLE.strip().split('\n'))
MAKES = {}  # Type -> entries whose result it is.
CHANGES = {}  # Type -> statements that change a variable of it.
for _entry in ENTRIES:
  if _entry.result == '-':
    CHANGES.setdefault(next(iter(_entry.holes.values())), []).append(_entry)
  else:
    MAKES.setdefault(_entry.result, []).append(_entry)
