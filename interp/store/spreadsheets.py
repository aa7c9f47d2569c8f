"""Tables for spreadsheets, which take some texts for formulas and run them."""

import re

import pandas as pd

# A text that begins so is run by a spreadsheet, unless it is a number, or one with its interval.
FORMULA = tuple("=+-@\t\r")
NUMBER = re.compile(r"[-+]?[\d.,]+( \[[-+\d., ]+\])?$")


def inert(table: pd.DataFrame) -> pd.DataFrame:
    """The table with an apostrophe before each text that a spreadsheet would run as a formula.

    A carriage return, which would end a row, is spelled out.
    """

    def quoted(value):
        if not isinstance(value, str):
            return value
        is_formula = value[:1] in FORMULA and not NUMBER.match(value)
        return ("'" * is_formula + value).replace("\r", "\\r")

    texts = table.select_dtypes(exclude="number").columns
    return table.assign(**{name: table[name].map(quoted) for name in texts})
