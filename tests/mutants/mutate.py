"""The mutants of a module: its text with one small mistake each, made from its syntax tree in the order of its lines.

Pure and deterministic: the same text has the same mutants. The kinds are those of a slip of the hand: a comparison, a
constant, a condition, an operator, a statement that is gone, two writes in the wrong order.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult, ast.Div: ast.Mult,
    ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}
UNSAID = (
    "log.",
    "say_failed(",
    "raise AssertionError",
    "setproctitle.",
)  # what a mutant of would be no mistake of the program's


@dataclass(frozen=True)
class Mutant:
    """A mistake: `before` at this place becomes `after`."""

    line: int
    kind: str
    where: str  # the function or class
    before: str
    after: str
    text: str  # of the whole module

    def __str__(self) -> str:
        return f"{self.line} {self.where or 'module'} ({self.kind}): {_short(self.before)}  →  {_short(self.after)}"


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 100 else text[:97] + "..."


def mutants(source: str) -> list[Mutant]:
    """All of a module's, in the order of their lines."""
    return sorted(_Module(source).found(), key=lambda mutant: (mutant.line, mutant.kind, mutant.before, mutant.after))


class _Module:
    def __init__(self, source: str) -> None:
        self._whole = source.encode()  # offsets of the tree are in bytes
        self._begins = [0, *accumulate(map(len, self._whole.splitlines(keepends=True)))]
        self._tree = ast.parse(source)
        self._where = ""

    def found(self) -> Iterator[Mutant]:
        yield from self._block(self._tree.body)

    def _block(self, body: list[ast.stmt]) -> Iterator[Mutant]:
        for number, statement in enumerate(body):
            if _unsaid(statement):
                continue
            if _is_write(statement):
                yield self._replaced(statement, "dropped", "pass")
            if number + 1 < len(body) and _order_shows(statement, body[number + 1]):
                yield from self._swapped(statement, body[number + 1])
            yield from self._statement(statement)

    def _swapped(self, first: ast.stmt, second: ast.stmt) -> Iterator[Mutant]:
        one, two = self._text(first), self._text(second)
        if not _unsaid(second) and one != two:
            begin, end = self._at(first.lineno, first.col_offset), self._end(second)
            between = self._whole[self._end(first) : self._at(second.lineno, second.col_offset)].decode()
            yield self._mutant(first, "swapped", begin, end, two + between + one)

    def _statement(self, statement: ast.stmt) -> Iterator[Mutant]:
        outside = self._where
        if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
            self._where = f"{outside}.{statement.name}".lstrip(".")
            yield from self._defaults(statement)
        for _, value in ast.iter_fields(statement):
            yield from self._field(statement, value)
        self._where = outside

    def _defaults(self, statement: ast.FunctionDef | ast.ClassDef) -> Iterator[Mutant]:
        if isinstance(statement, ast.FunctionDef):
            for each in (*statement.args.defaults, *statement.args.kw_defaults):
                if each is not None:
                    yield from self._expression(each)

    def _field(self, statement: ast.stmt, value: object) -> Iterator[Mutant]:
        if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
            yield from self._block(value)
        elif isinstance(value, list):
            for each in value:
                if isinstance(each, (ast.ExceptHandler, ast.match_case)):
                    yield from self._field(statement, each.body)
                    if isinstance(each, ast.match_case) and each.guard is not None:
                        yield from self._expression(each.guard)
                elif isinstance(each, ast.withitem):
                    yield from self._expression(each.context_expr)
        elif isinstance(value, ast.expr) and not _is_annotation(statement, value):
            yield from self._expression(value)

    # Expressions.

    def _expression(self, root: ast.expr) -> Iterator[Mutant]:
        for node in _walk(root):
            for kind, changed in _changes(node):
                yield self._replaced(node, kind, f"({ast.unparse(changed)})")

    # The text.

    def _at(self, line: int, column: int) -> int:
        return self._begins[line - 1] + column

    def _end(self, node: ast.stmt | ast.expr) -> int:
        return self._at(node.end_lineno or 0, node.end_col_offset or 0)

    def _text(self, node: ast.stmt | ast.expr) -> str:
        return self._whole[self._at(node.lineno, node.col_offset) : self._end(node)].decode()

    def _replaced(self, node: ast.stmt | ast.expr, kind: str, by: str) -> Mutant:
        return self._mutant(node, kind, self._at(node.lineno, node.col_offset), self._end(node), by)

    def _mutant(self, node: ast.stmt | ast.expr, kind: str, begin: int, end: int, by: str) -> Mutant:
        text = self._whole[:begin] + by.encode() + self._whole[end:]
        return Mutant(node.lineno, kind, self._where, self._whole[begin:end].decode(), by, text.decode())


def _changes(node: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    """The mistakes that this node can be, by their kinds."""
    match node:
        case ast.Compare():
            for number, operator in enumerate(node.ops):
                ops = [*node.ops[:number], COMPARISONS[type(operator)](), *node.ops[number + 1 :]]
                yield "comparison", ast.Compare(node.left, ops, node.comparators)
        case ast.BoolOp(op, values):
            yield "boolean", ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values)
            for number in range(len(values)):
                rest = [*values[:number], *values[number + 1 :]]
                yield "boolean", ast.BoolOp(op, rest) if len(rest) > 1 else rest[0]
        case ast.UnaryOp(ast.Not(), operand):
            yield "boolean", operand
        case ast.IfExp(test, body, orelse):
            yield "boolean", ast.IfExp(ast.UnaryOp(ast.Not(), test), body, orelse)
        case ast.BinOp(left, op, right) if type(op) in OPERATORS:
            yield "operator", ast.BinOp(left, OPERATORS[type(op)](), right)
        case ast.Constant(bool() | int() | float() as value):
            yield "constant", ast.Constant(_other(value))
        case ast.Call(ast.Name(name), arguments, keywords) if name in NAMES:
            yield "operator", ast.Call(ast.Name(NAMES[name]), arguments, keywords)


def _other(value: bool | float) -> bool | float:
    if isinstance(value, bool):
        return not value
    return value * 2 if isinstance(value, float) and value else value + 1


def _walk(root: ast.expr) -> Iterator[ast.expr]:
    """The nodes of an expression, but what is inside a text or an annotation."""
    yield root
    if isinstance(root, ast.JoinedStr):
        return
    for child in ast.iter_child_nodes(root):
        if isinstance(child, ast.expr):
            yield from _walk(child)
        elif not (isinstance(child, ast.keyword) and child.arg == "strict"):  # zip's, which only says what must be
            # A comprehension, an argument's name, the arguments of a lambda.
            for inner in ast.iter_child_nodes(child):
                if isinstance(inner, ast.expr):
                    yield from _walk(inner)


def _is_write(statement: ast.stmt) -> bool:
    """A statement that others could do without: a call, or a write to what outlives the line."""
    if isinstance(statement, ast.Assign):
        return any(isinstance(target, (ast.Attribute, ast.Subscript)) for target in statement.targets)
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, (ast.Call, ast.YieldFrom))
    return isinstance(statement, (ast.AugAssign, ast.Delete, ast.Continue, ast.Break))


def _order_shows(first: ast.stmt, second: ast.stmt) -> bool:
    """Two effects, unless all that both do is to give an attribute a value, which nobody looks at in between."""
    return _is_effect(first) and _is_effect(second) and not (_is_attribute(first) and _is_attribute(second))


def _is_attribute(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Assign) and all(isinstance(each, ast.Attribute) for each in statement.targets)


def _is_effect(statement: ast.stmt) -> bool:
    """A write whose place in the order somebody else could see: a call, or one to shared memory."""
    if not _is_write(statement):
        return False
    return any(
        isinstance(node, ast.Call) or (isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store))
        for node in ast.walk(statement)
    )


def _is_annotation(statement: ast.stmt, value: ast.expr) -> bool:
    return value in (getattr(statement, "annotation", None), getattr(statement, "returns", None))


def _unsaid(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING":
        return True
    return isinstance(statement, (ast.Expr, ast.Raise)) and ast.unparse(statement).startswith(UNSAID)
