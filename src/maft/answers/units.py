r"""Units, currencies and number words: which words after a number change it, and which do not."""

from __future__ import annotations

import math
import re
from fractions import Fraction

from maft.answers.latex import FONT, pairs, words

_SPACES = re.compile(r"~|(?<!\\)\\[ ,;]")

# ---- currencies

_CODES = "Rs\\.? USD EUR GBP INR JPY CNY RMB CAD AUD CHF NZD SGD HKD KRW BRL ZAR MXN RUB TRY SEK NOK DKK PLN"
_CURRENCY = re.compile(
    r"(?<![A-Za-z\\])(?:(?:US|CA|AU|NZ|HK|NT|MX|[ACSR]) ?(?=\\?\$)"
    rf"|(?:{'|'.join(_CODES.split())})(?![A-Za-z]))"
)

# ---- number words

_SCALE = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_SCALE |= {"lakh": 10**5, "crore": 10**7}
_SCALED = re.compile(
    rf"([0-9][0-9,]{{0,20}}(?:\.[0-9]{{1,20}})?)[ -]?({'|'.join(_SCALE)})s?(?![A-Za-z])", re.IGNORECASE
)
_POWER = re.compile(r"(?<=[0-9]) (squared|cubed)$")
_BELOW = re.compile(r"([0-9.]+) ?(?:degrees?)? ?(?:below zero)$")
_NEGATIVE = re.compile(r"(?:negative|minus) (?=[0-9])", re.IGNORECASE)
_CLOCK = re.compile(
    r"(1[0-2]|0?[0-9])(?:[:.]([0-5][0-9]))?(?::([0-5][0-9]))? ?(?:([ap])(?:\.? ?m\.?)|(noon|midnight))", re.IGNORECASE
)
_TWO_DIGIT_HOUR = re.compile(r"^0([0-9](?::[0-5][0-9]){1,2})$")
_SLASHED_DATE = re.compile(r"^([0-9]{4})/([0-9]{2})/([0-9]{2})$")
_CENTS = re.compile(r"([0-9]+) dollars? and ([0-9]{1,2}) cents?")
_MONTHS = pairs("jan 01 feb 02 mar 03 apr 04 may 05 jun 06 jul 07 aug 08 sep 09 oct 10 nov 11 dec 12")
_MONTH = (
    r"(jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    r"|nov(?:ember)?|dec(?:ember)?)(?![a-z])\.?"
)
_DAY = r"(0?[1-9]|[12][0-9]|3[01])(?:st|nd|rd|th)?"
_DATE = re.compile(rf"(?:(?:the )?{_DAY} (?:of )?{_MONTH}|{_MONTH} {_DAY})(?:,? ([0-9]{{4}}))?", re.IGNORECASE)
_WORDS = pairs(
    "zero 0 one 1 two 2 three 3 four 4 five 5 six 6 seven 7 eight 8 nine 9 ten 10 eleven 11 twelve 12 thirteen 13 "
    "fourteen 14 fifteen 15 sixteen 16 seventeen 17 eighteen 18 nineteen 19 twenty 20 thirty 30 forty 40 fifty 50 "
    "sixty 60 seventy 70 eighty 80 ninety 90"
)


def in_figures(text: str) -> str:
    r"""Write number words as figures, a date and a time of the day one way, and leave out currencies.

    >>> in_figures(r"\$5 million"), in_figures("500 USD"), in_figures(r"03:30\text{ p.m.}"), in_figures("5 squared")
    ('\\$5000000', '500', '15:30', '5^2')
    """
    if re.search("[0-9]", text):
        text = _CURRENCY.sub("", text).strip()
    if not re.search("[A-Za-z]{2}|[APap]\\.", text):
        return _SLASHED_DATE.sub(r"\1-\2-\3", _TWO_DIGIT_HOUR.sub(r"\1", text))
    plain = " ".join(_SPACES.sub(" ", FONT.sub(r" \1", text)).split())
    if time := _CLOCK.fullmatch(plain):
        hour = int(time[1]) % 12 + 12 * ((time[4] or time[5]).lower() in ("p", "noon"))
        return f"{hour}:{time[2] or '00'}" + (f":{time[3]}" if time[3] else "")
    if date := _DATE.fullmatch(plain):
        month = _MONTHS[(date[2] or date[3])[:3].lower()]
        return "-".join([*filter(None, [date[5]]), month, f"{int(date[1] or date[4]):02}"])
    if (value := _number_in_words(plain)) is not None:
        return str(value)
    plain = _CENTS.sub(lambda m: f"{m[1]}.{m[2]:0>2}", plain)
    if not FONT.search(text) or _SCALED.search(plain):
        for _ in range(2):  # 2 hundred thousand
            plain = _SCALED.sub(_scaled, plain)
        text = _BELOW.sub(r"-\1", _POWER.sub(lambda m: "^2" if m[1] == "squared" else "^3", plain))
    return _NEGATIVE.sub("-", text, count=1) if _NEGATIVE.match(text) else text


_PARTS = pairs("half 2 third 3 quarter 4 fourth 4 fifth 5 sixth 6 seventh 7 eighth 8 ninth 9 tenth 10 hundredth 100")
_PART = re.compile(rf"(?:(.{{1,60}})[ -])?(?:({'|'.join(_PARTS)})|({'|'.join(_PARTS)})s|halves)", re.IGNORECASE)


def _number_in_words(text: str) -> Fraction | None:
    """Return the number that a text is, if it is one in words.

    >>> [str(_number_in_words(text)) for text in ("minus five", "two thirds", "half", "two and a half", "a dozen")]
    ['-5', '2/3', '1/2', '5/2', '12']
    >>> [_number_in_words(text) for text in ("third", "twenty third", "one thirds", "a couple")]
    [None, None, None, None]
    """
    if sign := re.match("(?:minus|negative) ", text, re.IGNORECASE):
        value = _number_in_words(text[sign.end() :])
        return None if value is None or value <= 0 else -value
    if (number := _in_words(text)) is not None:
        return Fraction(number)
    whole, mixed, part = text.lower().rpartition(" and ")
    if mixed and (more := _part_in_words(part)) is not None and more < 1:
        number = _in_words(whole)
        return None if number is None else number + more
    return _part_in_words(text.lower())


def _part_in_words(text: str) -> Fraction | None:
    """Return a fraction in words, or a number of dozens."""
    if text.endswith("dozen"):
        count = _count(text.removesuffix("dozen").strip())
        return None if count is None else Fraction(12 * count)
    if (match := _PART.fullmatch(text)) is None:
        return None
    singular, plural = match[2], match[3] or ("half" if text.endswith("halves") else None)
    count = 1 if match[1] is None and singular == "half" else _count(match[1] or "")
    if count is None or (count == 1) != (singular is not None):  # twenty third is a place in a row
        return None
    return Fraction(count, int(_PARTS[singular or plural or "half"]))


def _count(text: str) -> int | None:
    return 1 if text in ("a", "an") else _in_words(text)


def _in_words(text: str) -> int | None:
    """Return the number that a text is, if it is one in words: three hundred and twenty-five, but not two three."""
    total, part, room, scale = 0, 0, math.inf, math.inf
    for word in re.split("[ -]", text.lower()):
        if word in _WORDS:
            value = int(_WORDS[word])
            if value >= room or (value == 0 and room < math.inf):
                return None
            part, room = part + value, 10 if value >= 20 else 0
        elif word == "hundred" and 0 < part < 100:
            part, room = part * 100, 100
        elif word in _SCALE and word not in ("hundred", "dozen") and part and _SCALE[word] < scale:
            scale = _SCALE[word]
            total, part, room = total + part * scale, 0, 1000
        elif word != "and" or room not in (100, 1000):
            return None
    return None if room == math.inf else total + part


def _scaled(match: re.Match[str]) -> str:
    return str(Fraction(match[1].replace(",", "")) * _SCALE[match[2].lower()])


# ---- units


_LETTER_UNITS = words("m s g h L N J W V K")
_LETTERS_IN_COMPOUNDS = _LETTER_UNITS | words("A C F T l")
_PRODUCTS = words("Nm Ah VA Wh Ws Js Vs")
_SYMBOLS = words(
    "mm cm dm km nm um mg kg ug lb lbs oz ml mL cl dl cc ft yd mi in mph kph kmh hr hrs min mins sec secs ms ns us kN "
    "kJ MJ kW MW GW kWh Wh kV mV mA Pa kPa MPa atm bar Hz kHz MHz GHz mol mmol cal kcal rad deg rpm ppm dB kB KB MB GB "
    "TB eV keV MeV GeV ha ohm pt qt gal yr yrs wk wks mo sq cu pct cents"
)
_SHORT_WORDS = words(
    "day men man cup egg box bag car boy kid way row toy pie jar can pen hat dog cat cow hen pig bus tie yen won of per"
    " the"
)
# A number before one of these words is not the whole answer.
_VALUES = {*_WORDS, *_SCALE} | words(
    "quadrillion grand gross score pair couple trio half halves halve third quarter fourth fifth sixth seventh eighth "
    "ninth tenth eleventh twelfth twentieth hundredth thousandth millionth billionth squared cubed power exponent root "
    "inverse reciprocal factorial below above under over beneath negative minus plus less fewer more most least times "
    "fold twofold threefold twice double doubled triple tripled am pm ad bc bce ce base mod modulo remainder or and if "
    "to choose infinity pi theta alpha beta gamma delta sigma lambda sqrt sin cos tan cot csc sinh cosh tanh log exp "
    "arcsin arccos arctan north south east west left right up down forward forwards backward backwards inside outside "
    "increase decrease rise fall win loss losses gain profit debt deficit true false wrong correct prime composite "
    "even odd positive before after ago not none nothing except without"
)
_COMPARATIVES = words(
    "older younger taller shorter longer higher lower larger smaller bigger greater warmer colder hotter cooler faster "
    "slower heavier lighter wider narrower deeper closer farther further nearer earlier later sooner richer poorer"
)
_NAME = r"[A-Za-z]+(?: ?\^ ?(?:-?[1-4]|\{ ?-?[1-4] ?\}))?\.?"
_NAMES = rf"{_NAME}(?:(?: ?[-/*] ?| ){_NAME})*"
_UNIT = re.compile(rf"({_NAMES}(?: ?/ ?\({_NAMES}\))?) ?")
_FRACTION = re.compile(r"\\frac ?\{ ?([A-Za-z]+) ?\} ?\{ ?([A-Za-z]+(?:\^[0-9])?) ?\}")
_NUMBER = re.compile(
    r"((?:[A-Za-z]{1,2} ?= ?)?(?:[-+0-9.,/^{}()* ]|\\(?:frac|sqrt|pi)(?![A-Za-z]))*(?:[0-9.)}]|\\pi))"
    r"( ?(?:/ ?(?=[A-Za-z]{3}))?)(?=[A-Za-z])"
)
_SEPARATOR = re.compile(r"([,;()\[\]=<>])")


def without_units(text: str) -> str:
    r"""Drop the unit after each number of an answer: `5 \text{ cm}^2` and `9.8 m/s^2`, but not `5m`.

    >>> without_units(r"8\pi\text{ cm}^3"), without_units("5 miles per hour"), without_units("3 cm, 4 cm")
    ('8\\pi', '5', '3, 4')
    >>> without_units("5 x"), without_units("5 pairs"), without_units("50 km/h"), without_units("5 2 m")
    ('5 x', '5 pairs', '50', '5 2 m')

    Units that differ are names, which tell the numbers of a list apart:

    >>> without_units("12 boys, 8 girls"), without_units("1 hour, 2 hours")
    ('12 boys, 8 girls', '1, 2')
    """
    whole = _without_unit(text)
    if whole != text or not _SEPARATOR.search(text):
        return whole
    parts = _SEPARATOR.split(text)
    bare = [_without_unit(part) for part in parts]
    units = {_named(part, number) for part, number in zip(parts, bare, strict=True) if number != part}
    return text if len(units) > 1 else "".join(bare)


def _named(part: str, number: str) -> str:
    """Return the unit of a part of a list, to compare it with those of other parts: `boys` of `12 boys`."""
    return " ".join(re.findall("[A-Za-z]+", FONT.sub(r" \1 ", part.replace(number, "", 1)))).lower().removesuffix("s")


def _without_unit(text: str) -> str:
    flat = FONT.sub(r" \1 ", text)
    flat = flat.replace(r"\Omega", "ohm").replace(r"\mu ", "u")
    flat = _FRACTION.sub(r" \1/\2", flat)
    flat = re.sub(r" +(?=\^|/|\*|$)", "", re.sub(" +", " ", flat))
    number = _NUMBER.match(flat)
    if number is None or not re.search(r"[0-9]|\\pi", number[1]) or re.search(r"[0-9] +[0-9](?![0-9]*/)", number[1]):
        return text
    unit = _UNIT.fullmatch(flat, number.end())
    return number[1].rstrip() if unit and _is_unit(unit[1], glued=not number[2]) else text


def _is_unit(unit: str, *, glued: bool) -> bool:
    names = re.findall("[A-Za-z]+", unit)
    letters = [name for name in names if len(name) == 1]
    lower = [name.lower() for name in names]
    if any(word in _VALUES or word.removesuffix("s") in _VALUES or word in _COMPARATIVES for word in lower) or lower[
        -1
    ] in ("square", "cubic"):
        return False
    known = _SYMBOLS | (_LETTERS_IN_COMPOUNDS if "/" in unit or len(names) > 1 else _LETTER_UNITS)
    alone = len(letters) == len(names) > 1 and "".join(names) not in _PRODUCTS
    if letters and (glued or alone) and not re.search(r"/|-[1-4]", unit):
        return False  # 5m and 2 g h are rather products
    return all(
        name in known
        or name.lower() in _SYMBOLS | _SHORT_WORDS
        or (not glued and len(name) > 3 and bool(re.search("[aeiou]", name)))
        for name in names
    )
