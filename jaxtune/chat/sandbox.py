"""Run a chat template: sandboxed, bounded in work and size, and with the source of every character kept.

A chat template is code that arrives with a model. It sees plain data only, can't reach Python's internals, and is
stopped when it loops for ever or builds huge values. The dialect is the one of Hugging Face `transformers`: Jinja with
`trim_blocks`, `lstrip_blocks`, `break` / `continue`, `raise_exception`, `strftime_now`, a plain `tojson`, and
`{% generation %}` around what the assistant says.
"""

import dataclasses
import datetime
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jinja2
import jinja2.compiler
import jinja2.ext
import jinja2.filters
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox
import jinja2.utils

from jaxtune.chat.filters import (
    filter_join,
    guarded,
    join_texts,
    make_dict,
    raise_exception,
    strftime_now,
    to_json,
    to_text,
)
from jaxtune.chat.meter import guard_arguments, guard_operator, meter, metered, size_of
from jaxtune.chat.traced import Piece, in_block, join, pieces_of, source_of, trace
from jaxtune.errors import UserError

MAX_SOURCE = 1_000_000
"""Characters of a template."""

_TEMPLATE_ERRORS = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    ArithmeticError,
    LookupError,
    AttributeError,
    RecursionError,
    MemoryError,
)
"""What the code of a template can raise; everything else is a bug of ours."""


@dataclasses.dataclass(frozen=True)
class Rendered:
    """The text of a rendered chat and the pieces it is made of."""

    text: str
    pieces: tuple[Piece, ...]


def compile_template(source: str, name: str) -> jinja2.Template:
    """Compile a chat template once per process. Raises `UserError` naming the template and the line."""
    if len(source) > MAX_SOURCE:
        raise UserError(f"chat template {name!r}: {len(source):,} characters; at most {MAX_SOURCE:,}. Use another.")
    try:
        return _compile(source)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(
            f"chat template {name!r}, line {error.lineno}: {error.message}. Correct the template."
        ) from error
    except (RecursionError, SyntaxError, MemoryError) as error:
        raise UserError(
            f"chat template {name!r}: its expressions or blocks are nested too deeply. Use another."
        ) from error
    except (ValueError, OverflowError) as error:
        raise UserError(f"chat template {name!r}: {error}. Correct the template.") from error


@functools.lru_cache(maxsize=64)
def _compile(source: str) -> jinja2.Template:
    environment = _environment()
    for node in environment.parse(source).find_all(
        (jinja2.nodes.Include, jinja2.nodes.Import, jinja2.nodes.FromImport, jinja2.nodes.Extends)
    ):
        raise jinja2.TemplateSyntaxError("a chat template can't include or import another", node.lineno)
    return environment.from_string(source)


def render(
    template: jinja2.Template, name: str, variables: Mapping[str, Any], *, today: datetime.date, given_chars: int = 0
) -> Rendered:
    """Render with `variables`, whose user strings are `Traced`.

    `today` is what `strftime_now` tells; `given_chars` is the size of the user's text, which the bound on built strings
    grows with. Raises `UserError` with the template's name and line for anything that goes wrong inside it.
    """
    try:
        with metered(given_chars, today):
            text = _concat(template.root_render_func(_context(template, variables)))
    except _TEMPLATE_ERRORS as error:
        raise UserError(_explain(error, template, name)) from error
    return Rendered(str.__str__(text), pieces_of(text))


def _concat(parts: Iterable[str]) -> str:
    """`join`, which stops while the parts come where they are too many characters."""
    kept: list[str] = []
    size, limit = 0, meter()
    for part in parts:
        size += len(part)
        if size > limit.max_chars:
            limit.allow(size)
        kept.append(part)
    limit.spend(size)
    return join(kept)


def _context(template: jinja2.Template, variables: Mapping[str, Any]) -> jinja2.runtime.Context:
    """What `Template.new_context` makes, without walking its chained globals at every render."""
    plain = {**_environment().globals, **variables}
    return jinja2.runtime.new_context(template.environment, template.name, template.blocks, plain, shared=True)


def _explain(error: BaseException, template: jinja2.Template, name: str) -> str:
    line, trace_back = None, error.__traceback__
    while trace_back is not None:
        if trace_back.tb_frame.f_code.co_filename == "<template>":
            line = template.get_corresponding_lineno(trace_back.tb_lineno)
        trace_back = trace_back.tb_next
    where = f"chat template {name!r}" + (f", line {line}" if line else "")
    if isinstance(error, jinja2.exceptions.SecurityError):
        return f"{where}: stopped: {str(error).rstrip('.')}. Use a template you trust, or a built-in one."
    if isinstance(error, RecursionError):
        return f"{where}: stopped: its macros call each other without end. Use another template."
    if isinstance(error, MemoryError):
        return f"{where}: stopped: the machine has no memory left for what it builds. Use another template."
    return f"{where}: {error or type(error).__name__}. Correct the conversation or use a template that accepts it."


class _CodeGenerator(jinja2.compiler.CodeGenerator):
    def visit_Concat(self, node: jinja2.nodes.Concat, frame: jinja2.compiler.Frame) -> None:
        """`a ~ b` keeps sources."""
        self.write("environment.tilde((")
        for arg in node.nodes:
            self.visit(arg, frame)
            self.write(", ")
        self.write("))")


class _Generation(jinja2.ext.Extension):
    """`{% generation %} ... {% endgeneration %}`: marks what the assistant says."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Callable[[], str]) -> str:
        limit = meter()
        limit.blocks += 1
        block = limit.blocks
        return in_block(caller(), block)


class _Namespace(jinja2.utils.Namespace):
    """A namespace without underscore names."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, rest = args[0], args[1:]
        values = dict(*rest, **kwargs)
        for name in values:
            _require_public(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _require_public(name)
        super().__setitem__(name, value)


def _require_public(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace attribute can't begin with an underscore: {name!r}")


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    code_generator_class = _CodeGenerator
    concat = staticmethod(_concat)
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, "jinja2.ext.loopcontrols"],
            finalize=to_text,
            optimized=False,
        )

    @property
    def tick(self) -> None:
        """Evaluated at the start of every loop body and macro body."""
        meter().step()

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        tree = super()._parse(source, name, filename)
        for node in tree.find_all((jinja2.nodes.For, jinja2.nodes.Macro, jinja2.nodes.CallBlock)):
            node.body.insert(0, jinja2.nodes.ExprStmt(jinja2.nodes.EnvironmentAttribute("tick"), lineno=node.lineno))
        return tree

    def tilde(self, values: Iterable[Any]) -> str:
        """The `~` operator."""
        parts = [to_text(value) for value in values]
        meter().spend(sum(map(len, parts)))
        return join(parts)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "+":
            meter().spend(size_of(left) + size_of(right))
            return left + right
        guard_operator(operator, left, right)
        return self.binop_table[operator](left, right)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format`, without access to attributes (Jinja's own guard) and without huge widths."""
        owner = getattr(value, "__self__", None)
        if not isinstance(owner, str) or value.__name__ not in ("format", "format_map"):
            return None
        plain = super().wrap_str_format(getattr(str.__str__(owner), value.__name__))
        assert plain is not None

        def run(*args: Any, **kwargs: Any) -> str:
            guard_arguments("format", owner, args, kwargs)
            text, source = plain(*args, **kwargs), source_of([owner, args, kwargs])
            return text if source is None else trace(text, source)

        return run

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - as in Jinja
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            guard_arguments(__obj.__name__, owner, args, kwargs)
            if __obj.__name__ == "join":
                return join_texts(owner, *args)
        result = super().call(__context, __obj, *args, **kwargs)
        meter().spend(size_of(result))
        if type(owner) is str and type(result) is str:
            source = source_of(args)
            return result if source is None else trace(result, source)
        return result


@functools.cache
def _environment() -> _Environment:
    environment = _Environment()
    for name in ("random", "safe", "escape", "e", "forceescape", "xmlattr", "urlize", "map"):
        del environment.filters[name]
    environment.filters.update({name: guarded(name, f) for name, f in environment.filters.items()})
    environment.filters.update(
        tojson=to_json, join=filter_join, string=to_text, map=jinja2.filters.FILTERS["map"], safe=to_text
    )
    del environment.globals["lipsum"]  # random text
    environment.globals.update(
        raise_exception=raise_exception, strftime_now=strftime_now, namespace=_Namespace, dict=make_dict
    )
    return environment
