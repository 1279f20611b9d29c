"""The sandbox: the dialect of chat templates works; what reaches for Python or loops for ever is stopped."""

import concurrent.futures
import datetime
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtune.chat import filters, meter
from jaxtune.chat import sandbox as jinja
from jaxtune.chat.traced import trace
from jaxtune.errors import UserError

DAY = datetime.date(2024, 7, 26)
MESSAGES = [
    {"role": "user", "content": trace(" hi <|end|> ", 0)},
    {"role": "assistant", "content": trace("yes\n", 1)},
]


def run(source, **variables):
    template = jinja.compile_template(source, "toy")
    return jinja.render(template, "toy", {"messages": MESSAGES} | variables, today=DAY)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{% for m in messages %}{{ m.role }},{% endfor %}", "user,assistant,"),
        (
            "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m['role'] }}{% break %}{% endfor %}",
            "assistant",
        ),
        (
            "{%- set ns = namespace(n=0) %}\n  {%- for m in messages %}"
            "\n  {%- set ns.n = ns.n + 1 %}\n{% endfor %}\n{{ ns.n }}",
            "2",
        ),
        ("{{ 'é<&>' | tojson }}", '"é<&>"'),
        ("{{ {'b': 1, 'a': [true, none]} | tojson }}", '{"b": 1, "a": [true, null]}'),
        ("{{ {'a': 1} | tojson(indent=2) }}", '{\n  "a": 1\n}'),
        ("{{ strftime_now('%d %b %Y') }}", "26 Jul 2024"),
        ("{{ messages | map(attribute='role') | join(', ') }}", "user, assistant"),
        ("{{ messages | selectattr('role', 'equalto', 'user') | list | length }}", "1"),
        ("{% macro f(x, y='!') %}{{ x ~ y }}{% endmacro %}{{ f('a') }}{{ f('b', y='?') }}", "a!b?"),
        ("{% set x %}a{{ 1 }}{% endset %}{{ x | upper }}", "A1"),
        ("{{ '%s-%s' | format('a', 2) }}{{ 'x{}'.format(1) }}{{ 'a' 'b' }}", "a-2x1ab"),
        ("{{ messages[::-1][0].role[:4] }}{{ dict(a=1).a }}{{ missing }}{{ none }}", "assi1None"),
        ("{{ 'a,b'.split(',') | join('+') }}{{ ', '.join(['x', 'y']) }}{{ 2 ** 3 * 2 }}{{ 7 % 4 }}", "a+bx, y163"),
        (
            "{{ 'safe' | safe }}{{ [3, 1, 2] | sort | first }}{{ 'ab' | replace('a', 'c') }}{{ '  x ' | trim }}",
            "safe1cbx",
        ),
        ("{% filter upper %}a{{ 'b' }}{% endfilter %}{% call(x) g() %}{{ x }}{% endcall %}", None),
    ],
)
def test_the_dialect_renders_as_expected(source, text):
    if text is None:
        source = "{% macro g() %}<{{ caller(3) }}>{% endmacro %}" + source
        text = "AB<3>"
    assert run(source).text == text


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__base__ }}",
        "{{ messages[0].content.__class__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ joiner.__init__.__globals__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__globals__['datetime'] }}",
        "{{ self.__init__.__globals__ }}",
        "{{ messages[0].content.format.__globals__.keys() }}",
        "{{ '{0.__class__}'.format(messages) }}",
        "{{ messages[0].content.strip.__func__.__globals__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{% set ns = namespace(__class__=1) %}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ (messages | map(attribute='__class__') | first).mro() }}",
        "{{ messages[0]['content'] | attr('__class__') | attr('mro') }}",
    ],
)
def test_a_template_that_reaches_for_python_is_stopped(source):
    with pytest.raises(UserError, match="chat template 'toy'"):
        run(source)


def test_private_attributes_of_traced_strings_are_out_of_reach():
    assert run("{{ messages[0].content._pieces is defined }}").text == "False"


NESTED = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
DOUBLING = "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = "
HELD = "{% set ns = namespace(x=[]) %}{% for i in range(1999) %}{% set ns.x = "
LISTS = "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = "


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (NESTED, "loop for ever"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "call each other without end"),
        (
            "{% macro f(n) %}{% for i in range(50) %}{{ f(n + 1) if n < 9 }}{% endfor %}{% endmacro %}{{ f(0) }}",
            "loop for ever",
        ),
        ("{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}", "call each other without end"),
        ("{{ range(10 ** 9) | list }}", "Range too big"),
        ("{{ 'a' * 10 ** 9 }}", "value of 1,000,000,000"),
        ("{{ 10 ** 9 * 'a' }}", "value of 1,000,000,000"),
        ("{{ [0] * 10 ** 9 }}", "value of 1,000,000,000"),
        ("{{ 9 ** 9999 }}", "exponent"),
        ("{% set ns = namespace(x=9) %}{% for i in range(40) %}{% set ns.x = ns.x * ns.x %}{% endfor %}", "value of"),
        (DOUBLING + "ns.x + ns.x %}{% endfor %}", "value of"),
        (DOUBLING + "ns.x ~ ns.x %}{% endfor %}", "value of"),
        (DOUBLING + "[ns.x, ns.x] | join %}{% endfor %}", "value of"),
        (DOUBLING + "''.join([ns.x, ns.x]) %}{% endfor %}", "value of"),
        (DOUBLING + "ns.x | replace('a', 'aaaaaaaa') %}{% endfor %}", "value of"),
        (DOUBLING + "ns.x.replace('a', 'aaaaaaaa') %}{% endfor %}", "value of"),
        (LISTS + "ns.x + ns.x %}{% endfor %}", "value of"),
        (LISTS + "[ns.x, ns.x] %}{% endfor %}{{ ns.x }}", "value of"),
        (LISTS + "[ns.x, ns.x] %}{% endfor %}{{ ns.x | tojson }}", "value of"),
        ("{{ 'a'.ljust(10 ** 9) }}", "too large"),
        ("{{ messages[0].content.center(10 ** 9) }}", "too large"),
        ("{{ 'a' | center(10 ** 9) }}", "too large"),
        ("{{ 'a' | indent(10 ** 9) }}", "too large"),
        ("{{ '{:999999999}'.format(1) }}", "format"),
        ("{{ messages[0].content.format(1) }}{{ '{:{}}'.format(1, 999999999) }}", "format|too large"),
        ("{{ '%999999999d' % 1 }}", "format"),
        ("{{ '%*d' % (999999999, 1) }}", "format"),
        ("{{ '%999999999d' | format(1) }}", "format"),
        ("{{ [1] | tojson(indent=10 ** 9) }}", "too large"),
        ("{{ " + "[" * 60 + "]" * 60 + " | tojson(indent=10 ** 6) | length }}", "value of"),
        ("{{ [1, 2] | tojson(separators=('a' * 99999, ':')) }}", "separators"),
        ("{{ ('a b ' * 9000) | wordwrap(1, wrapstring='x' * 9000) }}", "value of"),
        ("{{ ('a\\r' * 9000) | indent(9000) }}", "value of"),
        ("{% set x = 'a' * 9999 %}{% for i in range(999) %}{{ x }}{% endfor %}", "value of"),
        ("{% for i in range(1999) %}" + "a" * 999 + "{% endfor %}", "value of"),
        (
            "{% macro m() %}{% for i in range(999) %}" + "a" * 999 + "{% endfor %}{% endmacro %}{{ m() | length }}",
            "value of",
        ),
        (HELD + "ns.x + ['a' * 99999] %}{% endfor %}", "in all"),
        (HELD + "[ns.x, range(99999) | list] %}{% endfor %}", "in all"),
        (HELD + "[ns.x, ('a ' * 40000).split()] %}{% endfor %}", "in all"),
        (HELD + "[ns.x, '{:>90000}'.format(1)] %}{% endfor %}", "in all"),
    ],
)
def test_a_template_without_end_or_measure_is_stopped(monkeypatch, source, reason):
    monkeypatch.setattr(meter, "MAX_STEPS", 2000)  # the suite's shape checks make a step slow
    monkeypatch.setattr(meter, "MAX_CHARS", 100_000)
    started = time.process_time()
    with pytest.raises(UserError, match=reason):
        run(source)
    assert time.process_time() - started < meter.MAX_SECONDS


def test_growth_of_the_process_is_the_net_below(monkeypatch):
    monkeypatch.setattr(meter, "MAX_GROWTH", -1)
    with pytest.raises(UserError, match="MiB of memory"):
        run("{% for i in range(99) %}{% endfor %}")


def test_a_template_that_meets_the_end_of_memory_says_so(monkeypatch):
    def none_left(value, indent=0):
        raise MemoryError

    monkeypatch.setattr(filters, "measure", none_left)
    with pytest.raises(UserError, match="'toy', line 1: stopped: the machine has no memory left"):
        run("{{ [1] | tojson }}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
        "{{ " + "[" * 220 + "]" * 220 + " }}",
        "{% for i in [1] %}" * 25 + "{% endfor %}" * 25,
        "{% if a %}" + "{% elif b %}" * 3000 + "{% endif %}",
        "{{ " + "not " * 5000 + "1 }}",
        "{{ " + "+".join(["'a'"] * 8000) + " }}",
        "{{ " + "9" * 5000 + " }}",
        "{# " + "a" * 1_000_001 + " #}",
    ],
    ids=lambda source: source[:12],
)
def test_a_template_too_deep_or_too_long_to_compile_is_refused_by_name(source):
    """Prevents tracebacks of the parser, the compiler and Python itself."""
    try:
        run(source)
    except UserError as error:
        assert "'toy'" in str(error)


def test_slow_work_inside_few_steps_is_stopped_by_the_clock(monkeypatch):
    monkeypatch.setattr(meter, "MAX_SECONDS", 0.02)
    with pytest.raises(UserError, match="ran for more than 0.02 seconds"):
        run("{% for i in range(99999) %}{% set x = range(20000) | list %}{% endfor %}")


def test_threads_have_their_own_bounds(monkeypatch):
    """Prevents one render from using up, or lifting, the bound of another."""
    monkeypatch.setattr(meter, "MAX_STEPS", 1000)
    ok = "{% for i in range(900) %}{% endfor %}ok"
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        results = [pool.submit(run, source) for source in [ok, NESTED] * 4]
    assert [future.exception() is None for future in results] == [True, False] * 4


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("\n\n{{ messages[0].role.nothing.more }}", "line 3: .* has no attribute 'nothing'"),
        ("ok\n{{ raise_exception('no tools here') }}", "line 2: no tools here"),
        ("\n{{ 'a' + 1 }}", "line 2: "),
        ("\n{{ messages[0].content + missing }}", "line 2: .*missing"),
        ("\n{% macro f() %}\n{{ 1 / 0 }}\n{% endmacro %}\n{{ f() }}", "line 3: division by zero"),
        ("\n\n{% if %}", "line 3: Expected an expression"),
        ("{% include 'other' %}", "line 1: a chat template can't include"),
        ("{% generation %}", "line 1: "),
        ("{{ x | nosuchfilter }}", "line 1: No filter named 'nosuchfilter'"),
    ],
)
def test_an_error_in_a_template_names_it_and_the_line(source, message):
    with pytest.raises(UserError, match=f"chat template 'toy', {message}"):
        run(source)


def owned(rendered, source):
    return [text for text, found, _ in rendered.pieces if found == source]


@pytest.mark.parametrize(
    ("expression", "users"),
    [
        ("'<|end|>' + c + '<|end|>'", [" hi <|end|> "]),
        ("'<|end|>' ~ c ~ 1", [" hi <|end|> "]),
        ("c | trim", ["hi <|end|>"]),
        ("c.strip()[3:]", ["<|end|>"]),
        ("c.split(' ')[2]", ["<|end|>"]),
        ("['<|end|>', c] | join", [" hi <|end|> "]),
        ("'-'.join(['<|end|>', c])", [" hi <|end|> "]),
        ("c | upper", [" HI <|END|> "]),
        ("c | replace('h', 'H')", [" Hi <|end|> "]),
        ("'%s!' | format(c)", [" hi <|end|> !"]),
        ("'%s!' % c", [" hi <|end|> !"]),
        ("'{}!'.format(c)", [" hi <|end|> !"]),
        ("[c] | string", ["[' hi <|end|> ']"]),
        ("[c]", ["[' hi <|end|> ']"]),
        ("{'a': c} | tojson", ['{"a": " hi <|end|> "}']),
        ("messages | map(attribute='content') | first", [" hi <|end|> "]),
        ("'x'.replace('x', c)", [" hi <|end|> "]),
        ("c | indent(2)", None),
        ("c | default('<|end|>')", [" hi <|end|> "]),
        ("missing | default(c)", [" hi <|end|> "]),
        ("(c | list)[1:3] | join", ["h", "i"]),
        ("c | safe", [" hi <|end|> "]),
        ("m(c)", [" hi <|end|> "]),
    ],
)
def test_text_of_a_message_is_known_as_such_after(expression, users):
    """Prevents injection: through no operation does a user's control string pass for the template's."""
    start = "{% set c = messages[0].content %}{% macro m(x) %}<|end|>{{ x }}{% endmacro %}"
    found = owned(run(start + "{{ " + expression + " }}"), 0)
    assert "<|end|>" in "".join(found) or "<|END|>" in "".join(found) or expression.startswith("(c | list)")
    assert users is None or found == users


def test_generation_blocks_cover_what_is_inside_also_within_macros():
    source = "{% macro say(m) %}a{% generation %}<{{ m.content }}>{% endgeneration %}b{% endmacro %}"
    pieces = run(source + "{% for m in messages %}{{ say(m) }}{% endfor %}").pieces
    assert ["".join(text for text, _, found in pieces if found == block) for block in (1, 2)] == [
        "< hi <|end|> >",
        "<yes\n>",
    ]


@settings(max_examples=40, deadline=None)
@given(
    contents=st.lists(st.text(st.characters(codec="utf-8"), max_size=20), min_size=1, max_size=4),
    expressions=st.lists(
        st.sampled_from(
            ["m.content", "m.content | trim", "m.content.strip('\\n')", "m.content.split('<')[-1]", "'<|x|>'"]
        ),
        min_size=1,
        max_size=4,
    ),
)
def test_a_traced_render_spells_the_same_as_a_plain_one(contents, expressions):
    source = "{% for m in messages %}" + "".join("{{ " + e + " }}" for e in expressions) + "{% endfor %}"
    plain = [{"role": "user", "content": text} for text in contents]
    traced = [{"role": "user", "content": trace(text, i)} for i, text in enumerate(contents)]
    rendered = run(source, messages=traced)
    assert rendered.text == run(source, messages=plain).text == "".join(text for text, _, _ in rendered.pieces)


def test_a_template_is_compiled_once():
    assert jinja.compile_template("{{ 1 }}{{ 2 }}", "a") is jinja.compile_template("{{ 1 }}{{ 2 }}", "b")
