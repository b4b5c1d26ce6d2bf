r"""The process that asks Math-Verify: reads pairs of keys with their CPU time, and answers them, a line of JSON each.

Started by `maft.answers.verify` and ended by it, by the end of its input, or by its own timer. It answers "ready",
or what went wrong, before the first pair; then true, false or "memory".

Model output comes in here, so nothing in this process can act on it: once the libraries are loaded, the process
compiles no text as Python, starts no process, opens no connection and writes no file, whatever asks for it.
"""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import Any

from maft.answers.compare import alike, leaves
from maft.sandbox import confine
from maft.sandbox.process import forbid, limit_cpu, limit_memory

MONOMIALS = b"def monomial_"

SAMPLES = (Fraction(137, 100), Fraction(71, 100), Fraction(223, 100), Fraction(53, 100), Fraction(311, 100))


def refuse(event: str, arguments: tuple[Any, ...]) -> None:
    """Refuse what the comparison of two expressions has no need of (an audit hook, see PEP 578)."""
    forbid(event, arguments)
    if event == "compile":
        # Modules are compiled from files; text has a name in angle brackets. The exception is how sympy makes its
        # functions for polynomials, and no expression that comes in here can begin like it.
        source, name = arguments
        if not (isinstance(name, str) and name.endswith(".py")) and not bytes(source or b"").startswith(MONOMIALS):
            raise PermissionError("answers: no text is compiled")


def load() -> Callable[[str, str], bool]:
    """Load Math-Verify and return the comparison of two expressions in LaTeX."""
    import sympy
    from latex2sympy2_extended import NormalizationConfig, normalize_latex
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, _Latex2Sympy
    from math_verify import verify

    class Parser(_Latex2Sympy):  # type: ignore[misc]
        def parse_number(self, text: str) -> Any:
            # sympy.Number(text) would have Python evaluate the text. Decimals are exact here: nothing is rounded.
            value = Fraction(text.replace(",", ""))
            return sympy.Rational(value.numerator, value.denominator)

    tidying = NormalizationConfig(basic_latex=True, units=False, malformed_operators=False, nits=False, boxed="none")
    reading = ConversionConfig(lowercase_symbols=False)
    i = sympy.Symbol("i", real=True)

    @lru_cache(maxsize=4096)
    def parse(latex: str) -> Any:
        product = re.sub(r"(?<=\))(?=\()|(?<=[0-9])(?=\\frac|\()", "*", latex)  # mixed numbers are gone from keys
        expression = Parser(is_real=True, config=reading).parse(normalize_latex(product, tidying))
        return expression.subs(i, sympy.I) if i in expression.free_symbols else expression

    def differ(a: Any, b: Any) -> bool:
        """Say whether two expressions have different values at one place; it spares most of the algebra."""
        symbols = sorted(a.free_symbols | b.free_symbols, key=str)
        if len(symbols) > len(SAMPLES):
            return False
        place = {s: sympy.Rational(v.numerator, v.denominator) for s, v in zip(symbols, SAMPLES, strict=False)}
        try:
            left, right = a.evalf(15, subs=place), b.evalf(15, subs=place)
            size = max(abs(left), abs(right))
            # What is zero in truth has a value of 1e-100 or so.
            return bool(abs(left - right) > size * 1e-6) and bool(size > 1e-60)
        except (TypeError, ValueError, ArithmeticError, AttributeError):
            return False

    def same(a: str, b: str) -> bool:
        left, right = parse(a), parse(b)
        if isinstance(left, sympy.Expr) and isinstance(right, sympy.Expr):
            if differ(left, right):
                return False
            if left.is_rational and right.is_rational:  # by sixteen digits 2^{-99} is 2^{-98}
                left, right = left.doit(), right.doit()
                if isinstance(left, sympy.Rational) and isinstance(right, sympy.Rational):
                    return bool(left == right)
        return bool(verify(left, right, timeout_seconds=None))

    return same


def decide(a: str, b: str, same: Callable[[str, str], bool]) -> bool:
    """Compare two keys, asking for each pair of leaves in the order of their texts: the same question both ways."""

    def leaf(x: str, y: str) -> bool:
        known = leaves(x, y)
        if known is not None:
            return known
        try:
            return same(*sorted((x, y)))
        except MemoryError:
            raise
        except Exception:  # the parsers raise whatever they please; what cannot be read is not known to be equal
            return False

    return alike(a, b, leaf)


WARM = [
    ("x+1", "1+x"),
    (r"\sqrt{8}", r"2\sqrt{2}"),
    (r"\frac{1}{2}x", r"\frac{x}{2}"),
    ("x+y=1", "y+x=1"),
    ("i+1", "1+i"),
]
WARM += [(r"\sin^{2}x+\cos^{2}x", r"1+0x"), (r"2\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\4\end{pmatrix}")]


def main() -> None:
    """Answer pairs until the input ends."""
    out, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which may want to finish
    limit_memory(int(sys.argv[1]))
    try:
        same = load()
        for a, b in WARM:
            decide(a, b, same)
    except Exception as error:
        print(json.dumps(f"{type(error).__name__}: {error}"), file=out, flush=True)
        return
    confine.reader()
    sys.addaudithook(refuse)
    print(json.dumps("ready"), file=out, flush=True)
    for line in sys.stdin:
        a, b, seconds = json.loads(line)
        limit_cpu(seconds)
        try:
            answer: bool | str = decide(a, b, same)
        except MemoryError:
            answer = "memory"
        limit_cpu(0)
        print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    main()
