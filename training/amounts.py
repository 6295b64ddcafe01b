"""Random amounts, dates and codes in the many ways people write them. Each maker takes an rng."""

# Sentences are easier to compare in rows than in columns.
# ruff: noqa: E501
# fmt: off

import random
import string
from collections.abc import Callable, Mapping

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July",
    "August", "September", "October", "November", "December",
)
NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)
ORDINALS = (
    "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth",
    "eleventh", "twelfth",
)
CURRENCIES = ("euros", "pounds", "dollars", "crowns", "francs", "marks", "florins", "credits")
SIGNS = ("€", "£", "$", "CHF ", "EUR ")


def suffix(number: int) -> str:
    """st, nd, rd or th."""
    if 10 < number % 100 < 14:
        return "th"
    return {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")


def size(rng: random.Random) -> int:
    """A whole number between 1 and 20,000, small ones more often."""
    roll = rng.random()
    if roll < 0.45:
        return 2 + int(rng.random() * 29)
    if roll < 0.8:
        return 10 + int(rng.random() * 190)
    if roll < 0.92:
        return 10 * (10 + int(rng.random() * 190))
    return 100 + int(rng.random() * 19_900)


def count(rng: random.Random) -> str:
    number = size(rng)
    if number <= 20 and rng.random() < 0.3:
        return NUMBERS[number]
    return f"{number:,}" if number > 999 and rng.random() < 0.6 else str(number)


def small(rng: random.Random) -> str:
    number = rng.randrange(2, 21)
    return NUMBERS[number] if rng.random() < 0.4 else str(number)


def duration(rng: random.Random) -> str:
    roll = rng.random()
    if roll < 0.06:
        return rng.choice(("half an hour", "a fortnight", "half a year", "one hour", "one day", "a week",
                           "a month", "one year", "a quarter of an hour", "overnight", "a full day"))
    unit = rng.choice(("seconds", "minutes", "minutes", "hours", "hours", "days", "days", "working days",
                       "weeks", "weeks", "months", "months", "years", "years"))
    if roll < 0.12:
        return f"{NUMBERS[rng.randrange(1, 6)]} and a half {unit}"
    if roll < 0.2:
        low = rng.randrange(1, 10)
        return f"{low} to {low + rng.randrange(1, 6)} {unit}"
    number = rng.choice((15, 20, 30, 45, 60, 90)) if unit in ("seconds", "minutes") and roll < 0.7 else rng.randrange(2, 41)
    return f"{NUMBERS[number] if number <= 20 and roll < 0.55 else number} {unit}"


def money(rng: random.Random) -> str:
    number = size(rng) if rng.random() < 0.6 else 5 * rng.randrange(1, 120)
    text = f"{number:,}" if rng.random() < 0.8 else str(number)
    if rng.random() < 0.2:
        text += f".{rng.choice((50, 50, 20, 80, 90, 95, 99, 75, 25))}"
    return f"{rng.choice(SIGNS)}{text}" if rng.random() < 0.4 else f"{text} {rng.choice(CURRENCIES)}"


def percent(rng: random.Random) -> str:
    number = rng.choice((5, 10, 15, 20, 25, 30, 40, 50, 60, 75, 80, 90, rng.randrange(1, 100)))
    text = f"{number}.{rng.randrange(1, 10)}" if rng.random() < 0.2 else str(number)
    return f"{text}{rng.choice(('%', '%', ' %', ' per cent', ' percent'))}"


def clock(rng: random.Random) -> str:
    hour, minute = rng.randrange(5, 24), rng.choice((0, 0, 15, 30, 30, 45, rng.randrange(60)))
    roll = rng.random()
    if roll < 0.55:
        return f"{hour:02d}:{minute:02d}" if rng.random() < 0.5 else f"{hour}:{minute:02d}"
    half = "am" if hour < 12 else "pm"
    twelve = (hour - 1) % 12 + 1
    if roll < 0.65 and minute == 0:
        return f"{twelve} o'clock"
    if roll < 0.68:
        return rng.choice(("noon", "midnight", "half past six", "half past eight", "a quarter past nine", "ten to four"))
    text = f"{twelve}" if minute == 0 else f"{twelve}{rng.choice((':', ':', '.'))}{minute:02d}"
    return f"{text}{rng.choice((' ', ' ', ''))}{half}" if rng.random() < 0.7 else f"{text} {half[0]}.m."


def year(rng: random.Random) -> str:
    return str(rng.randrange(1880, 2040) if rng.random() < 0.4 else rng.randrange(1985, 2035))


def date(rng: random.Random) -> str:
    day, month = rng.randrange(1, 29), rng.choice(MONTHS)
    form = int(rng.random() * 9)
    if form == 0:
        return f"{rng.randrange(2015, 2035)}-{rng.randrange(1, 13):02d}-{day:02d}"
    if form == 1:
        return f"{month} {day}, {rng.randrange(2010, 2035)}"
    if form == 2:
        return f"{month} {day}"
    if form == 3:
        return f"{day}{suffix(day)} {month}"
    if form == 4:
        return f"{day} {month} {year(rng)}"
    if form == 5:
        return f"the {day}{suffix(day)} of {month}"
    if form == 6:
        return f"{rng.choice(WEEKDAYS)}, {day} {month}"
    return f"{day} {month}"


def code(rng: random.Random) -> str:
    def letters(n: int) -> str:
        return "".join(rng.choices(string.ascii_uppercase, k=n))

    def digits(n: int) -> str:
        return "".join(rng.choices(string.digits, k=n))

    form = int(rng.random() * 8)
    if form == 0:
        return digits(rng.randrange(4, 7))
    if form == 1:
        return f"{letters(2)}-{digits(4)}"
    if form == 2:
        return f"{letters(3)}{digits(3)}"
    if form == 3:
        return f"{letters(1)}{digits(2)}-{letters(2)}{digits(1)}"
    if form == 4:
        return "".join(rng.choices(string.ascii_lowercase + string.digits, k=rng.randrange(6, 10)))
    if form == 5:
        return f"{digits(2)}/{letters(2)}/{digits(3)}"
    if form == 6:
        return letters(rng.randrange(3, 6))
    return f"{letters(3)}-{digits(2)}-{letters(1)}"


def phone(rng: random.Random) -> str:
    def digits(n: int) -> str:
        return "".join(rng.choices(string.digits, k=n))

    form = int(rng.random() * 5)
    if form == 0:
        return f"0{digits(3)} {digits(6)}"
    if form == 1:
        return f"+{rng.randrange(20, 99)} {digits(2)} {digits(3)} {digits(4)}"
    if form == 2:
        return f"0{digits(2)}-{digits(7)}"
    if form == 3:
        return f"({digits(3)}) {digits(3)}-{digits(4)}"
    return f"0{digits(4)} {digits(3)} {digits(3)}"


def measure(*units: str) -> Callable[[random.Random], str]:
    """A maker of numbers with one of the units."""

    def make(rng: random.Random) -> str:
        number = str(size(rng)) if rng.random() < 0.75 else f"{rng.randrange(1, 90)}.{rng.randrange(1, 10)}"
        return f"{number} {rng.choice(units)}"

    return make


def temperature(rng: random.Random) -> str:
    return f"{rng.choice(('', '', '', 'minus '))}{rng.randrange(1, 260)} {rng.choice(('degrees', '°C', 'degrees Celsius'))}"


def version(rng: random.Random) -> str:
    parts = [str(rng.randrange(0, 30)) for _ in range(rng.choice((2, 2, 3)))]
    return rng.choice(("", "", "v")) + ".".join(parts)


def ordinal(rng: random.Random) -> str:
    number = rng.randrange(1, 32)
    return ORDINALS[number - 1] if number <= 12 and rng.random() < 0.7 else f"{number}{suffix(number)}"


AMOUNTS: Mapping[str, Callable[[random.Random], str]] = {
    "count": count, "small": small, "duration": duration, "money": money, "percent": percent,
    "time": clock, "year": year, "date": date, "code": code, "phone": phone,
    "weight": measure("kg", "grams", "kilos", "tonnes", "pounds"),
    "length": measure("metres", "cm", "m", "km", "feet", "inches", "miles", "centimetres", "millimetres"),
    "volume": measure("litres", "ml", "gallons", "cups", "barrels"),
    "speed": measure("km/h", "mph", "knots"),
    "area": measure("square metres", "hectares", "acres", "m²"),
    "temperature": temperature, "version": version, "ordinal": ordinal,
    "extension": lambda rng: str(rng.randrange(100, 9999)),
    "weekday": lambda rng: rng.choice(WEEKDAYS),
    "month": lambda rng: rng.choice(MONTHS),
}
"""Type name -> maker."""
